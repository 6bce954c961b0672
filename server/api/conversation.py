"""What a conversation may hold: turn by turn, as OpenAI's clients send it, and as chat templates know it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag

from server.api.refusals import LISTS, STRING, custom
from server.api.schemas import INT64_MAX, Strict, Unsupported, unset
from server.api.tools import CallId, ToolCall, ToolCalls, Tools, arguments_of, tools_of
from server.errors import BadRequest, shown
from server.text.conversation import Conversation, Turn

# What chat templates are known to ask for beside the conversation. Others could reach into their workings.
TEMPLATE_VARIABLES = frozenset(
    {
        "clear_thinking",
        "date_string",
        "enable_thinking",
        "keep_past_thinking",
        "preserve_thinking",
        "reasoning_effort",
        "thinking",
        "thinking_budget",
        "tools_in_user_message",
    }
)


class TextPart(Strict):
    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=256, fail_fast=True)]


class Message(Strict):
    """One turn. What OpenAI's clients echo of an answer may stand there as null."""

    no_effect = frozenset({"name"})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` means `system`; `tool` has what a call gave back."""
    content: Annotated[str, Tag(STRING)] | Annotated[Parts, Tag(LISTS)] | None = None
    """Text, or parts of text that are joined by line breaks. Only an assistant that calls tools may say nothing."""
    name: str | None = None
    tool_calls: ToolCalls | None = None
    """What the assistant called."""
    tool_call_id: CallId | None = None
    """Of a `tool` turn: the call it belongs to."""
    reasoning_content: str | None = None
    """What the assistant thought before it spoke, for templates that show it to the model again."""
    reasoning: str | None = None
    """Another name of `reasoning_content`."""
    refusal: Unsupported = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None

    @property
    def thought(self) -> str | None:
        return self.reasoning_content or self.reasoning


Messages = Annotated[list[Message], Field(min_length=1, max_length=2048, fail_fast=True)]


def _check_variables(variables: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
    for name, value in variables.items():
        if name not in TEMPLATE_VARIABLES:
            known = ", ".join(sorted(TEMPLATE_VARIABLES))
            message = f"Unknown parameter: 'chat_template_kwargs.{shown(name)}'. Those that may be set are: {known}."
            raise custom("unknown_parameter", message)
        if isinstance(value, str) and len(value) > 64:
            message = f"Invalid 'chat_template_kwargs.{name}': string too long. Expected at most 64 characters."
            raise custom("string_above_max_length", message)
        if isinstance(value, int) and abs(value) > INT64_MAX:
            raise custom("integer_above_max_value", f"Invalid 'chat_template_kwargs.{name}': it is beyond 64 bits.")
    return variables


class TemplateFields(Strict):
    """What decides, beside the messages, how a conversation is rendered."""

    tools: Tools | None = None
    """Functions that the model may call."""
    add_generation_prompt: bool | None = unset(True)
    """End the prompt where the assistant begins to speak; unset, unless `continue_final_message` is true."""
    continue_final_message: bool | None = unset(False)
    """Let the answer go on with the last message, which is the assistant's, instead of beginning one."""
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str], AfterValidator(_check_variables)] | None = (
        unset({})
    )
    """Variables for the chat template: booleans, numbers or short strings."""

    def conversation(self, messages: Sequence[Message]) -> Conversation:
        """What the template renders; raises BadRequest, naming the field, where that is no conversation."""
        is_continued = bool(self.continue_final_message)
        if is_continued and self.add_generation_prompt:
            message = "Invalid 'add_generation_prompt': the answer goes on with the last message already."
            raise BadRequest(message, param="add_generation_prompt", code="invalid_value")
        last = messages[-1]
        if is_continued and (last.role != "assistant" or last.tool_calls or not last.content):
            message = "Invalid 'continue_final_message': the last message has to be text of the assistant."
            raise BadRequest(message, param="continue_final_message", code="invalid_value")
        return Conversation(
            turns=turns_of(messages),
            tools=tools_of(self.tools),
            variables=self.chat_template_kwargs or {},
            is_continued=is_continued,
            opens_answer=self.add_generation_prompt is not False and not is_continued,
        )


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """Raises BadRequest for fields that do not belong to the role, and for what answers a call that nobody made."""
    called: set[str] = set()
    turns: list[Turn] = []
    for place, message in enumerate(messages):
        _check_fields(message, f"messages[{place}]")
        if message.tool_call_id is not None and message.tool_call_id not in called:
            param = f"messages[{place}].tool_call_id"
            text = f"Invalid '{param}': no turn before has a call with the id '{shown(message.tool_call_id)}'."
            raise BadRequest(text, param=param, code="invalid_value")
        called |= {call.id for call in message.tool_calls or []}
        turns.append(_turn(message, f"messages[{place}]"))
    return turns


def _check_fields(message: Message, path: str) -> None:
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        param = f"{path}.content"
        if "content" not in message.model_fields_set:
            raise BadRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
        text = f"Invalid type for '{param}': expected a string or an array, but got null instead."
        raise BadRequest(text, param=param, code="invalid_type")
    if message.role == "tool" and message.tool_call_id is None:
        param = f"{path}.tool_call_id"
        raise BadRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    owners = {"tool_call_id": "tool", "tool_calls": "assistant", "reasoning_content": "assistant"}
    for name, role in (owners | {"reasoning": "assistant"}).items():
        if getattr(message, name) is not None and message.role != role:
            text = f"Invalid '{path}.{name}': only a turn of the role '{role}' has it."
            raise BadRequest(text, param=f"{path}.{name}", code="invalid_value")


def _turn(message: Message, path: str) -> Turn:
    """As chat templates know it: "developer" is OpenAI's later name for "system"."""
    content: Any = message.content or ""
    if isinstance(content, list):
        content = [part.model_dump() for part in content]
    turn: Turn = {"role": "system" if message.role == "developer" else message.role, "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [
            _call(call, f"{path}.tool_calls[{place}]") for place, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.thought is not None:
        turn["reasoning_content"] = message.thought
    return turn


def _call(call: ToolCall, path: str) -> dict[str, Any]:
    arguments = arguments_of(call.function.arguments, f"{path}.function.arguments")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
