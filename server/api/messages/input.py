"""The blocks that Anthropic's messages consist of, and the turns that they are."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag
from pydantic.json_schema import SkipJsonSchema

from server.api.refusals import LISTS, OTHER, STRING
from server.api.schemas import Strict
from server.api.tools import CallId, ToolName
from server.api.variants import Other, by_type

Turn = dict[str, Any]  # of a chat's messages


class Cached(Strict):
    """What may be marked for caching; every prompt is cached here, marked or not."""

    no_effect = frozenset({"cache_control"})

    cache_control: dict[str, JsonValue] | None = None


class TextBlock(Cached):
    no_effect = Cached.no_effect | {"citations"}

    type: Literal["text"]
    text: str
    """Blocks are joined by line breaks."""
    citations: list[JsonValue] | None = None


class ToolUse(Cached):
    """A call that the model has made."""

    no_effect = Cached.no_effect | {"caller"}

    type: Literal["tool_use"]
    id: CallId
    """By which its result is found."""
    name: ToolName
    """Of the tool."""
    input: dict[str, JsonValue]
    """Its arguments."""
    caller: JsonValue = None


Texts = Annotated[list[TextBlock], Field(min_length=1, max_length=256, fail_fast=True)]
ResultBlock = Annotated[
    Annotated[TextBlock, Tag("~text")] | Annotated[Other, Tag(OTHER), SkipJsonSchema()],
    Discriminator(by_type({"text"}, "text")),
]
ResultBlocks = Annotated[list[ResultBlock], Field(max_length=256, fail_fast=True)]


class ToolResult(Cached):
    """What a call gave back."""

    no_effect = Cached.no_effect | {"is_error"}

    type: Literal["tool_result"]
    tool_use_id: CallId
    """Of the call."""
    content: Annotated[str, Tag(STRING)] | Annotated[ResultBlocks, Tag(LISTS)] | None = None
    """Text, or blocks of text."""
    is_error: bool | None = None


class Thought(Strict):
    """What the model thought before it spoke; templates leave out that of earlier turns."""

    no_effect = frozenset({"signature"})

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("~text")]
    | Annotated[ToolUse, Tag("~tool_use")]
    | Annotated[ToolResult, Tag("~tool_result")]
    | Annotated[Thought, Tag("~thinking")]
    | Annotated[Other, Tag(OTHER), SkipJsonSchema()],
    Discriminator(by_type({"text", "tool_use", "tool_result", "thinking"}, "text")),
]
Blocks = Annotated[list[Block], Field(min_length=1, max_length=256, fail_fast=True)]


class AnthropicTurn(Strict):
    role: Literal["user", "assistant", "system"]
    """Who speaks."""
    content: Annotated[str, Tag(STRING)] | Annotated[Blocks, Tag(LISTS)]
    """Text, or blocks."""


def turns(messages: Iterable[AnthropicTurn]) -> Iterator[Turn]:
    """Results of tools are turns of their own."""
    for message in messages:
        if isinstance(message.content, str):
            yield {"role": message.role, "content": message.content}
            continue
        for block in message.content:
            if isinstance(block, ToolResult):
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": plain(block.content or "")}
        said = dict(_said(message.content))
        if said:
            yield {"role": message.role, "content": None, **said}


def _said(blocks: list[Block]) -> Iterator[tuple[str, Any]]:
    """The fields of the turn that blocks are, results of tools aside."""
    if any(isinstance(block, TextBlock) for block in blocks):
        yield "content", plain(blocks)
    if thoughts := [block.thinking for block in blocks if isinstance(block, Thought)]:
        yield "reasoning_content", "\n".join(thoughts)
    if calls := [_call(block) for block in blocks if isinstance(block, ToolUse)]:
        yield "tool_calls", calls


def _call(block: ToolUse) -> dict[str, Any]:
    function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
    return {"id": block.id, "type": "function", "function": function}


def plain(content: str | Sequence[object]) -> str:
    """Blocks of text are joined by line breaks, as the parts of chat messages are."""
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content if isinstance(block, TextBlock))
