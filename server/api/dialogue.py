"""From a conversation to what the model is asked, and to how its answer is read."""

from dataclasses import dataclass, replace

from server.api.chat_body import ChatBody
from server.api.conversation import Message, TemplateFields
from server.api.interpreter import Interpreter
from server.api.service import ServedModel
from server.errors import BadRequest
from server.text.answer_parser import AnswerParser
from server.text.call_grammar import Calling, call_grammar
from server.text.call_parser import CallParser, new_call_id, new_short_call_id
from server.text.chat_format import ChatFormat
from server.text.conversation import Conversation
from server.text.detokenizer import Detokenizer
from server.text.prompts import Prompts
from server.text.reasoning import ReasoningFormat, ReasoningParser

SWITCHES = ("enable_thinking", "thinking")  # by which templates leave out reasoning


_SWITCHES = ("enable_thinking", "thinking")  # by which templates leave out reasoning


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What the model is asked, and how its answer is read."""

    prompt: list[int]
    grammar: str | None  # that the calls of tools follow
    shown: dict[int, bytes]  # special tokens that the interpreter has to see
    interpreter: Interpreter


async def dialogue(body: ChatBody, model: ServedModel, *, is_bound: bool) -> Dialogue:
    """Where the answer `is_bound` to a form, all of it is text. Raises BadRequest, naming the field at fault."""
    tools = model.tools
    conversation, form = body.conversation(body.messages), tools.prompts.format
    if body.calls_tools and is_bound:
        message = "Invalid 'tools': the answer has a form already; leave it out, or send 'tool_choice' as 'none'."
        raise BadRequest(message, param="tools", code="invalid_value")
    prompt = await tools.prompts.conversation(_with_effort(conversation, body.reasoning_effort, tools.prompts))
    reasoning = None if is_bound else form.reasoning
    is_open = reasoning is not None and reasoning.is_opened_by(prompt.ending)
    calling = _calling(body, conversation, form) if body.calls_tools else None
    grammar = None
    if calling is not None:
        try:
            written = call_grammar(calling, form.special, reasoning, reasoning_is_open=is_open)
        except ValueError as error:
            raise BadRequest(f"Invalid 'tools': {error}.", param="tools", code="invalid_value") from None
        grammar = await tools.grammars.calls(*written, param="tools")
    shown = {} if is_bound else form.shown(None if calling is None else calling.syntax)
    interpreter = Interpreter(
        lambda: _parser(calling, reasoning, is_open),
        lambda: Detokenizer(tools.tokenizer.token_bytes, shown),
        tells_reasoning=body.include_reasoning is not False,
    )
    return Dialogue(prompt.ids, grammar, shown, interpreter)


def _calling(body: ChatBody, conversation: Conversation, form: ChatFormat) -> Calling:
    named = body.named_tool
    return Calling(
        syntax=form.tools.syntax,
        tools=[tool for tool in conversation.tools if named in (None, tool.name)],
        is_required=named is not None or body.tool_choice == "required",
        is_single=named is not None or body.parallel_tool_calls is False,
    )


def _parser(calling: Calling | None, reasoning: ReasoningFormat | None, is_open: bool) -> AnswerParser:
    calls = None
    if calling is not None:
        new_id = new_short_call_id if calling.syntax.has_short_ids else new_call_id
        calls = CallParser(calling.syntax, [tool.name for tool in calling.tools], new_id)
    return AnswerParser(None if reasoning is None else ReasoningParser(reasoning, is_open=is_open), calls)


def _with_effort(conversation: Conversation, effort: str | None, prompts: Prompts) -> Conversation:
    """With an effort of none, templates that can leave out reasoning are told to."""
    asked: dict[str, bool | int | float | str] = {}
    if effort is not None and prompts.knows("reasoning_effort"):
        asked["reasoning_effort"] = effort
    if effort == "none":
        asked |= {name: False for name in SWITCHES if prompts.knows(name)}
    return replace(conversation, variables={**asked, **conversation.variables})


def without_effect(body: TemplateFields, messages: list[Message], prompts: Prompts) -> list[str]:
    """The fields that the model's template does not read."""
    names = [f"chat_template_kwargs.{name}" for name in body.chat_template_kwargs or {} if not prompts.knows(name)]
    if any(message.thought is not None for message in messages) and not prompts.mentions("reasoning_content"):
        names.append("messages.reasoning_content")
    if isinstance(body, ChatBody):
        if body.reasoning_effort is not None and not _has_effort(body.reasoning_effort, prompts):
            names.append("reasoning_effort")
        if body.parallel_tool_calls is not None and not body.calls_tools:
            names.append("parallel_tool_calls")
    return names


def _has_effort(effort: str, prompts: Prompts) -> bool:
    return prompts.knows("reasoning_effort") or (effort == "none" and any(map(prompts.knows, SWITCHES)))
