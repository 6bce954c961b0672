"""The life of one generating request: prepared, run, told as a whole or as a stream, and accounted for once."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api import sse
from server.api.answers import ignored_header
from server.api.connection import Client, ClientGone, watching
from server.api.resumable import WISH, is_wished
from server.api.service import Service
from server.errors import BadRequest, HeadraceError, RequestTimedOut
from server.exactness.receipt import RECEIPT, Provenance
from server.generator import Generation, GenerationRequest, Generator, Piece, Usage
from server.logs import Log
from server.metrics import EndReason, RequestMeter
from server.quotas import Account

log = Log(__name__)


class Reply(Protocol):
    """How a resource words one answer."""

    def opening(self) -> bytes:
        """The events before the first piece's."""

    def event(self, piece: Piece, usage: Usage) -> bytes:
        """The events that tell of a piece, when so much was used; empty where it has nothing to tell."""

    def closing(self, usage: Usage) -> bytes:
        """The events that end a stream."""

    def failure(self, error: HeadraceError) -> bytes:
        """The event that tells why a stream ends before its time."""

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        """The JSON of an answer that is not streamed."""


class Unstreamed:
    """The part of a `Reply` that answers never need which come as a whole only."""

    def opening(self) -> bytes:
        raise AssertionError("it is not streamed")

    def event(self, piece: Piece, usage: Usage) -> bytes:
        raise AssertionError("it is not streamed")

    def closing(self, usage: Usage) -> bytes:
        raise AssertionError("it is not streamed")

    def failure(self, error: HeadraceError) -> bytes:
        raise AssertionError("it is not streamed")


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is ready to be queued."""

    generator: Generator
    request: GenerationRequest
    reply: Reply
    is_streamed: bool
    provenance: Provenance
    ignored: list[str] = field(default_factory=list)  # fields that turned out to have no effect here
    on_end: Callable[[str, EndReason, Usage], None] = lambda request_id, reason, usage: None


class Answer(Response):
    """Does a request's work as its response, so that the client is watched from the body's end to the last byte."""

    def __init__(self, service: Service, prepare: Callable[[], Coroutine[Any, Any, Job]], ignored: list[str]) -> None:
        """`prepare` raises where the request cannot be honoured; `ignored` names the fields without effect."""
        self._service = service
        self._prepare = prepare
        self._arrived = time.monotonic()
        self._ignored = ignored
        self._own_headers: dict[str, str] = {}
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_resumable = is_wished(scope)
        _account_of(scope).request()
        async with watching(receive) as client:
            async with self._in_time():
                job = await client.while_there(self._prepare())
            if not is_resumable:
                await self._run(job, scope, client, send)
                return
            if not job.is_streamed:
                message = f"Invalid header '{WISH}': only allowed when 'stream' is true."
                raise BadRequest(message, param=WISH, code="invalid_value")
            stream = self._service.streams.open(scope, lambda client, send: self._run(job, scope, client, send))
            await stream.tell(client, 0, send)

    async def _run(self, job: Job, scope: Scope, client: Client, send: Send) -> None:
        """For a connection, or for a stream that outlives its connections."""
        account = _account_of(scope)
        with account.spending(job.request.foreseen_tokens) as spending:
            self._own_headers = ignored_header([*self._ignored, *job.ignored]) | account.headers
            self._own_headers |= {RECEIPT: job.provenance.receipt(job.request.sampling.seed)}
            generation = job.generator.start(job.request)
            scope["state"]["is_accepted"] = True
            meter = self._service.metrics.request_accepted(self._arrived, account.name)
            tell = self._tell_stream if job.is_streamed else self._tell_whole
            end: EndReason = "error"
            try:
                async with self._in_time():
                    await client.while_there(tell(job.reply, generation, meter, send))
                end = meter.natural_end
            except ClientGone:
                end = "disconnect"
                raise
            except HeadraceError as error:
                error.event = job.reply.failure(error) if job.is_streamed else None
                raise
            finally:
                spending.tokens = generation.usage.prompt_tokens + generation.usage.completion_tokens
                if end not in ("stop", "length"):
                    generation.close()
                self._account(scope, meter, end, generation.usage)
                job.on_end(scope["state"]["request_id"], end, generation.timed_usage)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Raises RequestTimedOut when the request has lasted for too long."""
        limit_s = self._service.options.request_timeout_s
        left_s = None if limit_s is None else self._arrived + limit_s - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                yield
        except TimeoutError:
            assert limit_s is not None
            raise RequestTimedOut(limit_s) from None

    async def _tell_stream(self, reply: Reply, generation: Generation, meter: RequestMeter, send: Send) -> None:
        events, has_started = reply.opening(), False
        async for pieces in generation.batches():
            if not has_started:  # not earlier: what fails before the first piece is a plain error
                await self._start(send, sse.HEADERS)
                has_started = True
            usage = generation.usage
            meter.progressed(pieces, usage)
            events += b"".join(reply.event(piece, usage) for piece in pieces)
            if events:
                await send({"type": "http.response.body", "body": events, "more_body": True})
            events = b""
        await send({"type": "http.response.body", "body": reply.closing(generation.timed_usage)})

    async def _tell_whole(self, reply: Reply, generation: Generation, meter: RequestMeter, send: Send) -> None:
        all_pieces: list[Piece] = []
        async for pieces in generation.batches():
            meter.progressed(pieces, generation.usage)
            all_pieces += pieces
        if any(piece.findings for piece in all_pieces):  # much to word: away from the event loop
            body = await asyncio.to_thread(reply.whole, all_pieces, generation.timed_usage)
        else:
            body = reply.whole(all_pieces, generation.timed_usage)
        await self._start(send, {"content-type": "application/json", "content-length": str(len(body))})
        await send({"type": "http.response.body", "body": body})

    async def _start(self, send: Send, headers: dict[str, str]) -> None:
        raw = [(name.encode(), value.encode()) for name, value in (headers | self._own_headers).items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    def _account(self, scope: Scope, meter: RequestMeter, reason: EndReason, usage: Usage) -> None:
        meter.ended(reason, usage)
        log.info(
            "generation ended",
            request_id=scope["state"]["request_id"],
            reason=reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            seconds=round(time.monotonic() - self._arrived, 3),
        )


def _account_of(scope: Scope) -> Account:
    account = scope["state"]["account"]
    assert isinstance(account, Account)
    return account
