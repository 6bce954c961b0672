"""The items that a conversation consists of, and the turns that they are."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag
from pydantic.json_schema import SkipJsonSchema

from server.api.refusals import LISTS, OTHER, STRING
from server.api.schemas import Strict
from server.api.tools import CallId, ToolName
from server.api.variants import Other, by_type

Turn = dict[str, Any]  # of a chat's messages


class InputText(Strict):
    """Text that was said to the model, or, as `output_text`, by it."""

    no_effect = frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})

    type: Literal["input_text", "output_text"]
    """`output_text` is what the model has said before."""
    text: str
    """Parts are joined by line breaks."""
    annotations: list[JsonValue] | None = None
    logprobs: list[JsonValue] | None = None
    prompt_cache_breakpoint: JsonValue = None


Texts = Annotated[list[InputText], Field(min_length=1, max_length=256, fail_fast=True)]
Content = Annotated[str, Tag(STRING)] | Annotated[Texts, Tag(LISTS)]


class EchoedItem(Strict):
    """What an item of an earlier response has beside what it says."""

    no_effect = frozenset({"id", "status"})

    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class MessageItem(EchoedItem):
    """One turn; a message of an earlier response may stand here as it came."""

    no_effect = EchoedItem.no_effect | {"phase"}

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    """`developer` means `system`."""
    content: Content
    """Text, or parts of text."""
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCall(EchoedItem):
    """A call that the model has made."""

    type: Literal["function_call"]
    call_id: CallId
    """By which its output is found."""
    name: ToolName
    """Of the function."""
    arguments: str
    """A JSON object, as text."""


class FunctionCallOutput(EchoedItem):
    """What a call gave back."""

    type: Literal["function_call_output"]
    call_id: CallId
    """Of the call."""
    output: Content
    """Text, or parts of text."""


class ReasoningText(Strict):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(EchoedItem):
    """What the model thought before its next item."""

    no_effect = EchoedItem.no_effect | {"encrypted_content", "summary"}

    type: Literal["reasoning"]
    summary: list[ReasoningText] | None = None
    content: list[ReasoningText] | None = None
    """Its text; templates leave out that of earlier turns."""
    encrypted_content: str | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("~message")]
    | Annotated[FunctionCall, Tag("~function_call")]
    | Annotated[FunctionCallOutput, Tag("~function_call_output")]
    | Annotated[ReasoningItem, Tag("~reasoning")]
    | Annotated[Other, Tag(OTHER), SkipJsonSchema()],
    Discriminator(by_type({"message", "function_call", "function_call_output", "reasoning"}, "message")),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=2048, fail_fast=True)]


def turns(items: Iterable[Item]) -> Iterator[Turn]:
    """What the assistant thinks, says and calls in a row is one turn."""
    said: Turn = {}
    for item in items:
        part = _part(item)
        if said and not _continues(said, part):
            yield said
            said = {}
        if part["role"] != "assistant":
            yield part
        elif "tool_calls" in part:
            said = {"content": None, **said, **part, "tool_calls": said.get("tool_calls", []) + part["tool_calls"]}
        else:
            said |= part
    if said:
        yield said


def _continues(said: Turn, part: Turn) -> bool:
    """Whether the assistant's turn goes on: reasoning comes first in one, calls come last."""
    if part["role"] != "assistant" or "reasoning_content" in part:
        return False
    return "tool_calls" in part or said.keys() == {"role", "reasoning_content"}


def _part(item: Item) -> Turn:
    match item:
        case MessageItem():
            return {"role": item.role, "content": _plain(item.content)}
        case FunctionCall():
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            return {"role": "assistant", "tool_calls": [call]}
        case FunctionCallOutput():
            return {"role": "tool", "tool_call_id": item.call_id, "content": _plain(item.output)}
        case ReasoningItem():
            text = "\n".join(part.text for part in item.content or [])
            return {"role": "assistant", "reasoning_content": text}
        case Other():
            raise AssertionError("the schema refuses it")


def _plain(content: str | list[InputText]) -> str:
    """Parts are joined by line breaks, as those of chat messages are."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
