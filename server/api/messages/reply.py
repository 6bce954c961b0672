"""How an answer is worded as an Anthropic message, content block by content block."""

import secrets
from collections import deque
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from server.api import faults
from server.api.chat_reply import Occasion
from server.api.sse import to_json, typed_event
from server.errors import HeadraceError
from server.generator import Piece, Usage
from server.text.parts import CallArguments, CallBegin, Part, Reasoning, Text

Event = dict[str, Any]
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class Block:
    """One, as it grows. `fields` are what it has from the start."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self._texts: list[str] = []

    @property
    def kind(self) -> str:
        kind: str = self.fields["type"]
        return kind

    def grow(self, text: str) -> dict[str, str]:
        self._texts.append(text)
        delta, name = _DELTAS[self.kind]
        return {"type": delta, name: text}

    def whole(self) -> dict[str, Any]:
        text = "".join(self._texts)
        if self.kind != "tool_use":
            return self.fields | {self.kind: text}
        # What was cut off by the limit is an object up to there.
        return self.fields | {"input": from_json(text or "{}", allow_partial=True)}


class MessagesReply:
    """A `Reply`. What is not streamed is what a stream's events add up to."""

    def __init__(self, occasion: Occasion) -> None:
        self._message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": occasion.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Usage(occasion.prompt_tokens, 0, 0)),
        }
        self._interpreter = occasion.interpreter
        self._blocks: list[Block] = []  # the last one may still grow
        self._ending: dict[str, str | None] = {}

    def opening(self) -> bytes:
        return typed_event({"type": "message_start", "message": self._message}) + typed_event({"type": "ping"})

    def event(self, piece: Piece, usage: Usage) -> bytes:
        return b"".join(map(typed_event, self._hear(piece)))

    def closing(self, usage: Usage) -> bytes:
        events: list[Event] = [
            *self._end_block(),
            {"type": "message_delta", "delta": self._ending, "usage": _usage(usage)},
            {"type": "message_stop"},
        ]
        return b"".join(map(typed_event, events))

    def failure(self, error: HeadraceError) -> bytes:
        return typed_event(faults.anthropic(error))

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        for piece in pieces:
            deque(self._hear(piece), maxlen=0)
        content = [block.whole() for block in self._blocks]
        return to_json(self._message | {"content": content, **self._ending, "usage": _usage(usage)})

    def _hear(self, piece: Piece) -> Iterator[Event]:
        heard = self._interpreter.hear(piece)
        for part in heard.parts:
            yield from self._tell(part)
        if heard.finish_reason is not None:
            reason = STOP_REASONS[heard.finish_reason] if heard.stop_string is None else "stop_sequence"
            self._ending = {"stop_reason": reason, "stop_sequence": heard.stop_string}

    def _tell(self, part: Part) -> Iterator[Event]:
        match part:
            case Text(text):
                yield from self._speak({"type": "text", "text": ""}, text)
            case Reasoning(text):
                yield from self._speak({"type": "thinking", "thinking": "", "signature": ""}, text)
            case CallBegin(_, id, name):
                yield from self._begin_block({"type": "tool_use", "id": id, "name": name, "input": {}})
            case CallArguments(_, text):
                yield self._told("delta", {"delta": self._blocks[-1].grow(text)})

    def _speak(self, fields: dict[str, Any], text: str) -> Iterator[Event]:
        if not self._blocks or self._blocks[-1].kind != fields["type"]:
            yield from self._begin_block(fields)
        yield self._told("delta", {"delta": self._blocks[-1].grow(text)})

    def _begin_block(self, fields: dict[str, Any]) -> Iterator[Event]:
        yield from self._end_block()
        self._blocks.append(Block(fields))
        yield self._told("start", {"content_block": fields})

    def _end_block(self) -> Iterator[Event]:
        if self._blocks:
            yield self._told("stop", {})

    def _told(self, what: str, fields: dict[str, Any]) -> Event:
        return {"type": f"content_block_{what}", "index": len(self._blocks) - 1, **fields}


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic counts what came from the cache apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }
