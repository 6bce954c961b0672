"""How events are framed for `text/event-stream`, and what every answer of one request repeats."""

import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any, Self

import msgspec

from server.errors import HeadraceError
from server.generator import Usage

DONE = b"data: [DONE]\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect events otherwise
}
# Line breaks to Python's `str.splitlines`, by which some clients find an event's lines, though not to the SSE standard.
_LINE_BREAKS = {char.encode(): f"\\u{ord(char):04x}".encode() for char in "\x85\u2028\u2029"}

to_json = msgspec.json.Encoder().encode


def json_text(text: str) -> bytes:
    """A JSON string that stays on one line for every reader."""
    return _on_one_line(to_json(text))


def event(payload: Any) -> bytes:
    return b"data: " + to_json(payload) + b"\n\n"


def typed_event(payload: dict[str, Any]) -> bytes:
    """One whose name is the payload's own `type`."""
    return b"event: %b\ndata: %b\n\n" % (payload["type"].encode(), _on_one_line(to_json(payload)))


def _on_one_line(encoded: bytes) -> bytes:
    if not encoded.isascii():
        for char, escape in _LINE_BREAKS.items():
            encoded = encoded.replace(char, escape)
    return encoded


def wall_time() -> int:
    """Seconds since 1970, for `created` fields only: durations are measured by the monotonic clock."""
    return int(time.time())


@dataclass(frozen=True, slots=True)
class Envelope:
    """The fields that every chunk and the whole of an answer share; their order is that of the JSON."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def new(cls, prefix: str, kind: str, model: str, fingerprint: str) -> Self:
        return cls(f"{prefix}-{secrets.token_hex(12)}", kind, wall_time(), model, fingerprint)

    def around(self, choices: list[Any], usage: Usage, *, has_timings: bool = False) -> dict[str, Any]:
        timings = {"timings": timings_fields(usage)} if has_timings else {}
        return {**asdict(self), "choices": choices, "usage": usage_fields(usage), **timings}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a stream tells beside its choices."""

    usage: bool = False  # in an event of its own
    usage_always: bool = False  # in every event
    timings: bool = False


class Chunks:
    """Frames chunks of one answer. All but the choices is rendered once, because this runs for every token."""

    def __init__(self, envelope: Envelope, wishes: Wishes) -> None:
        self._envelope = envelope
        self._wishes = wishes
        self._head = b"data: " + to_json(envelope)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if wishes.usage or wishes.usage_always else b"]}\n\n"

    def around(self, choice: bytes, usage: Usage | None = None) -> bytes:
        """`usage` is what was used so far, if anything was."""
        if usage is None or not self._wishes.usage_always:
            return self._head + choice + self._tail
        return b'%b%b],"usage":%b}\n\n' % (self._head, choice, to_json(usage_fields(usage)))

    def failure(self, error: HeadraceError) -> bytes:
        return event(error.body())

    def closing(self, usage: Usage) -> bytes:
        """What ends a stream: usage and timings, where they were asked for, and the mark that nothing is missing."""
        wishes = self._wishes
        if not (wishes.usage or wishes.timings):
            return DONE
        last = self._envelope.around([], usage, has_timings=wishes.timings)
        return event(last if wishes.usage else last | {"usage": None}) + DONE


def usage_fields(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def timings_fields(usage: Usage) -> dict[str, Any]:
    """Under the names that llama.cpp uses, and how long the request waited. `predicted_per_second` leaves out each
    choice's first token, which comes from the prompt.
    """
    timings = usage.timings
    if timings is None:
        return {}
    computed = usage.prompt_tokens - usage.cached_tokens
    return {
        "queue_ms": _ms(timings.queue_s),
        "cache_n": usage.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": _ms(timings.prefill_s),
        "prompt_per_second": _rate(computed, timings.prefill_s),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": _ms(timings.decode_s),
        "predicted_per_second": _rate(timings.decoded_tokens, timings.decode_s),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 3) if seconds > 0 else None
