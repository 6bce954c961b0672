"""How an answer is worded as an Anthropic message, content block by content block."""

import secrets
from collections import deque
from collections.abc import Iterator
from typing import Any

from server.api import faults
from server.api.chat_reply import Occasion
from server.api.sse import to_json, typed_event
from server.errors import HeadraceError
from server.generator import Piece, Usage

Event = dict[str, Any]
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


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
        self._blocks: list[dict[str, Any]] = []  # the last one may still grow
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
        return to_json(self._message | {"content": self._blocks, **self._ending, "usage": _usage(usage)})

    def _hear(self, piece: Piece) -> Iterator[Event]:
        if piece.text:
            if not self._blocks:
                yield from self._begin_block({"type": "text", "text": ""})
            self._blocks[-1]["text"] += piece.text
            yield self._told("delta", {"delta": {"type": "text_delta", "text": piece.text}})
        if piece.finish_reason is not None:
            reason = STOP_REASONS[piece.finish_reason] if piece.stop_string is None else "stop_sequence"
            self._ending = {"stop_reason": reason, "stop_sequence": piece.stop_string}

    def _begin_block(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._end_block()
        self._blocks.append(block)
        yield self._told("start", {"content_block": {**block}})

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
