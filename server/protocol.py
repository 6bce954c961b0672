"""How long a client may take to send a request, how much of a head it may send, and what it hears otherwise.

uvicorn waits for ever for the rest of a request, and its parser takes heads of any size.
"""

import asyncio
import json
import secrets
from dataclasses import dataclass
from typing import ClassVar, Literal

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import BadRequest, HeadersTooLarge, HeadraceError, SlowRequest

MAX_HEAD_BYTES = 64 * 1024  # of a head that has not ended; of one that has, the app counts more exactly
MAX_HEADERS = 100

_ANSWER_S = 1.0  # more than the app, which waits for the body as long, needs to say that it waits no longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds from the first byte to the last."""

    head_s: float = 10.0
    body_s: float = 30.0


class _Protocol(HttpToolsProtocol):
    """One connection. At most one timer runs: while a request's head is awaited or comes, or its body does."""

    patience: ClassVar[Patience]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._stage: Literal["silence", "head", "body", "all"] = "silence"
        self._head_bytes = 0
        self._timer = self.loop.call_later(self.patience.head_s, self._lose_patience)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._stage
        super().data_received(data)
        if self._stage == before == "head":
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadersTooLarge(MAX_HEAD_BYTES, MAX_HEADERS))
        elif self._stage == before == "all" and self._is_between_requests:
            self._enter("silence", self.patience.head_s)  # empty lines, which the parser skips

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._enter("head", self.patience.head_s)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._enter("body", self.patience.body_s + _ANSWER_S)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._enter("all", None)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where the parser finds no HTTP."""
        self._refuse(BadRequest("The request is not valid HTTP.", code="invalid_http"))

    @property
    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def _can_answer(self) -> bool:
        """Nobody else speaks now, and nobody has answered the request that is coming in."""
        if self._stage == "body":
            return not self.pipeline and not self.cycle.response_started
        return self._is_between_requests

    def _enter(self, stage: Literal["silence", "head", "body", "all"], within_s: float | None) -> None:
        self._timer.cancel()
        self._stage = stage
        if within_s is not None:
            self._timer = self.loop.call_later(within_s, self._lose_patience)

    def _lose_patience(self) -> None:
        is_behind = bool(self.pipeline) if self._stage == "body" else not self._is_between_requests
        if is_behind:  # the answer to an earlier request goes on
            self._timer = self.loop.call_later(self.patience.head_s, self._lose_patience)
        elif self._stage == "head":
            self._refuse(SlowRequest())
        else:
            self.transport.close()

    def _refuse(self, error: HeadraceError) -> None:
        """Says so where that is no part of another answer, and closes."""
        self._timer.cancel()
        if self._can_answer:
            body = json.dumps(error.body()).encode()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "x-request-id": f"req-{secrets.token_hex(16)}",
                **error.headers,
                "connection": "close",
            }
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(STATUS_LINE[error.status] + head.encode() + b"\r\n" + body)
        if self.cycle is not None:
            self.cycle.disconnected = True  # whatever it would still say
            self.cycle.message_event.set()
        self.transport.close()


def protocol_class(wanted: Patience) -> type[asyncio.Protocol]:
    """What uvicorn makes connections of."""

    class Protocol(_Protocol):
        patience = wanted

    return Protocol
