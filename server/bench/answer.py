"""How the streamed answer of a completion becomes a record: text, finish reason, usage and errors with their times."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from server.bench.record import Failure, Record, Usage
from server.bench.sse import Event, EventParser

MESSAGE_LIMIT = 200  # characters of a server's error that are kept


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        delta = self.delta
        return bool(self.text or (delta and (delta.content or delta.reasoning_content or delta.reasoning)))


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    """The part of a chunk that is measured; what else a server sends is not even decoded."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None  # an object with a message, or a bare string: servers differ


_decoder = msgspec.json.Decoder(_Chunk)


class Answer:
    """Fed with the body of one streamed answer, fills `record`."""

    def __init__(self, record: Record, on_first: Callable[[], None] = lambda: None) -> None:
        self.record = record
        self._on_first = on_first
        self.is_done = False  # [DONE] has come
        self._parser = EventParser()

    def feed(self, data: bytes) -> None:
        now = time.monotonic()
        for event in self._parser.feed(data):
            self.take(event, now)

    def take(self, event: Event, now: float) -> None:
        if event.data.startswith(b"[DONE]"):
            self.is_done = True
            return
        try:
            chunk = _decoder.decode(event.data)
        except msgspec.DecodeError as error:
            self._fail("bad chunk", f"{error}: {_excerpt(event.data)}")
            return
        if chunk.error or event.name == b"error":
            self._fail("sse error", error_message(event.data))
        for choice in chunk.choices:
            if choice.has_text:
                if not self.record.chunks:
                    self._on_first()
                self.record.chunks.append(now)
            if choice.finish_reason:
                self.record.finish = now
        if chunk.usage:
            details = chunk.usage.prompt_tokens_details
            cached = details.cached_tokens if details else None
            self.record.usage = Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens, cached)

    def close(self) -> None:
        """Judges what the stream lacked once it is over."""
        if not self.is_done and self.record.finish is None:  # there are servers that never say [DONE]
            self._fail("cut", "the stream ended before [DONE]")
        elif not self.record.chunks and self.record.finish is None:
            self._fail("empty", "the stream had neither text nor a finish reason")

    def _fail(self, kind: str, message: str) -> None:
        if self.record.failure is None:  # the first failure is the cause of those after it
            self.record.failure = Failure(kind, message)


def error_message(body: bytes) -> str:
    """What an error body says, in any of the shapes that servers use, else its first characters."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _excerpt(body)
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return value[:MESSAGE_LIMIT] if isinstance(value, str) else _excerpt(body)


def _excerpt(data: bytes) -> str:
    return data.decode(errors="replace")[:MESSAGE_LIMIT]
