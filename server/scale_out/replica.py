"""One replica: an engine, with all that watches over one, behind methods that Ray Serve calls."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from server.config import ServeOptions
from server.engine.client import EngineClient, Listener
from server.engine.messages import Submit
from server.engine.streams import Order, TokenStream
from server.engine.supervisor import Care
from server.errors import EngineGone, HeadraceError, InternalError
from server.scale_out.messages import Aboard, Description, Fault, FromReplica, Report, Told, Unable

_encode = msgspec.msgpack.Encoder().encode
_submit = msgspec.msgpack.Decoder(Submit)


class Replica:
    """Its engine is replaced as any is; whoever waits here waits on. What outlives even this is for the callers."""

    def __init__(self, name: str, options: ServeOptions, care: Care | None = None) -> None:
        self._name = name
        self._settled = asyncio.Event()
        listener = Listener(on_ready=lambda _: self._settled.set(), on_failure=lambda _: self._settled.set())
        care = care or Care(watchdog_s=options.watchdog, keeps_spare=options.spare_engine)
        self._engine = EngineClient(options, options.max_queue, listener, care)
        self._was_silent = False

    async def start(self) -> None:
        """Returns when the engine computes. Raises EngineGone where it will not."""
        await self._engine.start()
        await self._settled.wait()
        if self._engine.failure is not None:
            raise EngineGone(self._engine.failure)

    async def describe(self) -> bytes:
        return _encode(self._description)

    async def generate(self, submit: bytes) -> AsyncGenerator[bytes, None]:
        """Everything about one sequence, which is cancelled where the caller leaves."""
        yield _encode(Aboard(self._name, self._description.fingerprint))
        try:
            order = _order(_submit.decode(submit))
            if len(order.prompt) + order.max_tokens > self._engine.longest:
                raise EngineGone("the replica has no room for it")
            (stream,) = self._engine.submit([order])
        except HeadraceError as error:
            yield _encode(Unable(error.message))
            return
        async with contextlib.aclosing(_told(stream)) as all_told:
            async for told in all_told:
                yield _encode(told)

    async def check_health(self) -> None:
        """Raises EngineGone while the engine does not turn, or is gone for longer than requests should wait.

        Those that a silent engine has are sent elsewhere, once: where this is the only replica, they come back.
        """
        self._engine.check()
        was_silent, self._was_silent = self._was_silent, self._engine.is_silent
        if self._was_silent:
            error = EngineGone("The engine gives no sign of life.")
            if not was_silent:
                self._engine.fail_all(error)
            raise error

    def record_routing_stats(self) -> dict[str, Any]:
        report: dict[str, Any] = msgspec.to_builtins(Report(self._engine.is_up, self._engine.stats))
        return report

    async def close(self) -> None:
        await self._engine.stop()

    @property
    def _description(self) -> Description:
        assert self._engine.card is not None, "the engine has computed"
        assert self._engine.ready is not None, "the engine has computed"
        return Description(self._engine.card, self._engine.ready)


async def _told(stream: TokenStream) -> AsyncGenerator[FromReplica, None]:
    is_first = True
    try:
        while True:
            deltas = await stream.take()
            yield Told(deltas, stream.life.stages().prefill_s if is_first else None)
            is_first = False
            if deltas[-1].finish is not None:
                return
    except InternalError as error:
        yield Fault(error.message)
    except HeadraceError as error:
        yield Unable(error.message)
    finally:
        stream.cancel()


def _order(submit: Submit) -> Order:
    return Order(
        submit.prompt,
        submit.max_tokens,
        submit.ending_ids,
        submit.sampling,
        adapter=submit.adapter,
        salt=submit.salt,
        priority=submit.priority,
        reading=submit.reading,
        begun=tuple(submit.output),
        cached_tokens=submit.cached_tokens,
    )
