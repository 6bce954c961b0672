"""Many replicas as one engine: it keeps the journal from which any of them can go on with what another has begun."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import msgspec

from server.config import EngineOptions
from server.engine.adapters import Adapter, Adapters
from server.engine.client import Listener
from server.engine.journal import Entry
from server.engine.messages import ModelCard, Progress, Ready, Stats
from server.engine.streams import Order, TokenStream
from server.errors import BadRequest, EngineGone, HeadraceError, InternalError, ModelLoading, Overloaded
from server.logs import Log
from server.scale_out.messages import Aboard, Description, Fault, FromReplica, Told, Unable
from server.scale_out.routing import Why

MAX_FRUITLESS = 5  # replicas in a row that have left a sequence where it was

_LOOK_EVERY_S = 0.5
_RESUME_WINDOW_S = 60.0  # without a replica, new requests are queued for so long, and later refused
_PAUSE_S = 0.2  # before the second of them, and longer each time
_STOPPING = "the server stops"

log = Log(__name__)


class ClusterError(Exception):
    """The replicas cannot be had; the message is one line for people."""


class ReplicaLost(Exception):
    """A replica has left a sequence unfinished; the message says why."""


@dataclass(frozen=True, slots=True)
class Census:
    """What is known of the replicas that take requests, by name."""

    stats: Mapping[str, Stats]
    replicas: int  # those without stats yet included
    routed: Mapping[tuple[str, Why], int]  # requests sent to each so far, and why to it


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterListener(Listener):
    """Who also wants to know how the replicas are doing."""

    on_census: Callable[[Census], None] = lambda census: None  # now and then
    on_move: Callable[[], None] = lambda: None  # a sequence has lost its replica and looks for another


class Cluster(Protocol):
    """Where the replicas are."""

    async def start(self) -> Description:
        """Returns when the first of them computes. Raises ClusterError."""

    def generate(self, submit: bytes) -> AsyncGenerator[bytes, None]:
        """What one replica says of a sequence, FromReplica each. Raises ReplicaLost; closing it cancels."""

    def begun(self, sequence: int) -> None:
        """The replica that has it has read its prompt."""

    async def census(self) -> Census: ...

    async def restart(self) -> None:
        """New replicas take the place of the old ones, which finish what they have. Raises ClusterError."""

    async def stop(self) -> None: ...


class ClusterEngine:
    """See `Engine`. A stream goes on with another replica where one is lost, with the tokens it would have had."""

    def __init__(
        self, cluster: Cluster, options: EngineOptions, max_queue: int, listener: ClusterListener | None = None
    ) -> None:
        self.card: ModelCard | None = None
        self.ready: Ready | None = None
        self.progress: Progress | None = None
        self.failure: str | None = None
        self.is_up = False
        self.is_hung = False  # that is for each replica to know
        self.adapters = Adapters({}, _refuse_adapters, lambda digest: False)
        self._cluster = cluster
        self._options = options
        self._max_queue = max_queue
        self._listener = listener or ClusterListener()
        self._fingerprint = ""
        self._replicas = 1
        self._up_at = 0.0  # when there was one last
        self._carrying: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, TokenStream] = {}
        self._ids = itertools.count(1)
        self._idle = asyncio.Event()
        self._attending: asyncio.Task[None] | None = None
        self._restarting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._attending = asyncio.create_task(self._attend())

    async def stop(self) -> None:
        if self._attending is None:
            return
        self.kill()
        with contextlib.suppress(asyncio.CancelledError):
            await self._attending
        await asyncio.gather(*self._carrying.values(), return_exceptions=True)
        await self._cluster.stop()

    def kill(self) -> None:
        self.failure = self.failure or _STOPPING
        if self._attending is not None:
            self._attending.cancel()

    def restart(self) -> None:
        """Has every replica replaced, a few at a time; requests are taken meanwhile."""
        if self._restarting is None or self._restarting.done():
            self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        log.info("replicas restart")
        try:
            await self._cluster.restart()
        except ClusterError as error:
            log.error("replicas not restarted", reason=error)

    @property
    def live(self) -> int:
        return len(self._streams)

    @property
    def longest(self) -> int:
        assert self.card is not None, "asked before the model is known"
        assert self.ready is not None, "asked before the cache is sized"
        return min(self.card.context_length, self.ready.total_blocks * self.ready.block_size)

    def check(self) -> None:
        """Raises what `submit` would raise for reasons of the replicas' lives."""
        if self.failure is not None:
            raise EngineGone("The engine is not running.", retry_after_s=10.0)
        if self.ready is None:
            raise ModelLoading("The model is loading.")
        if not self.is_up and time.monotonic() - self._up_at > _RESUME_WINDOW_S:
            raise EngineGone("There is no replica of the engine.", retry_after_s=5.0)

    def submit(self, orders: list[Order]) -> list[TokenStream]:
        self.check()
        if self.live + len(orders) > self._options.max_sequences * self._replicas + self._max_queue:
            raise Overloaded("The server is overloaded: its queue is full.")
        streams = [TokenStream(next(self._ids), self._cancel) for _ in orders]
        for order, stream in zip(orders, streams, strict=True):
            self._streams[stream.id] = stream
            carrying = asyncio.create_task(self._carry(Entry(order, stream, run=stream.id)))
            self._carrying[stream.id] = carrying
            carrying.add_done_callback(lambda _, id=stream.id: self._carrying.pop(id))  # type: ignore[misc]
        return streams

    async def load_adapter(self, name: str, folder: Path) -> Adapter:
        raise BadRequest("This server loads no adapters.", param="lora_name")

    async def idle(self) -> None:
        while self.live:
            self._idle.clear()
            await self._idle.wait()

    def fail_all(self, error: HeadraceError) -> None:
        for stream in list(self._streams.values()):
            stream.fail(error)
            self._cancel(stream.id)

    def _cancel(self, id: int) -> None:
        if (carrying := self._carrying.get(id)) is not None:
            carrying.cancel()
        self._end(id)

    def _end(self, id: int) -> None:
        stream = self._streams.pop(id, None)
        if stream is not None:
            self._listener.on_end(stream.life.stages())
        if not self.live:
            self._idle.set()

    async def _attend(self) -> None:
        reason = "the replicas' supervision failed"
        try:
            await self._look_after()
        except ClusterError as error:
            reason = str(error)
        finally:
            self._give_up(self.failure or reason)

    def _give_up(self, reason: str) -> None:
        """Nothing more will come: whoever still waits is told so."""
        self.is_up = False
        self.failure = reason
        self.fail_all(EngineGone("The engine has stopped and left this request unfinished."))
        if reason != _STOPPING:
            self._listener.on_failure(reason)

    async def _look_after(self) -> None:
        """Waits for the replicas to be, and then for news of them. Raises ClusterError."""
        description = await self._cluster.start()
        self.card, self._fingerprint = description.card, description.fingerprint
        self._listener.on_card(description.card)
        self.ready, self.is_up, self._up_at = description.ready, True, time.monotonic()
        self._listener.on_ready(description.ready)
        while True:
            census = await self._cluster.census()
            self.is_up = census.replicas > 0
            self._up_at = time.monotonic() if self.is_up else self._up_at
            self._replicas = max(census.replicas, 1)
            self._listener.on_census(census)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _carry(self, entry: Entry) -> None:
        """One sequence to its end, by as many replicas as it takes."""
        stream = entry.stream
        try:
            await self._try_replicas(entry)
        except HeadraceError as error:
            stream.fail(error)
        finally:
            self._end(stream.id)

    async def _try_replicas(self, entry: Entry) -> None:
        fruitless = 0
        while fruitless < MAX_FRUITLESS:
            told = len(entry.output)
            try:
                return await self._follow(entry)
            except ReplicaLost as error:
                fruitless = fruitless + 1 if len(entry.output) == told else 0
                log.warning("replica left a request", sequence=entry.stream.id, tokens=told, reason=error)
                self._listener.on_move()
            await asyncio.sleep(_PAUSE_S * fruitless)
        raise EngineGone("No replica of the engine has got this request any further.")

    async def _follow(self, entry: Entry) -> None:
        """What one replica makes of it. Raises ReplicaLost, and what the sequence ends with."""
        submit = msgspec.msgpack.encode(entry.submit())
        async with contextlib.aclosing(self._cluster.generate(submit)) as messages:
            async for message in messages:
                self._hear(entry, msgspec.msgpack.decode(message, type=FromReplica))
                if entry.stream.is_over:
                    return
        raise ReplicaLost("it said no more")

    def _hear(self, entry: Entry, said: FromReplica) -> None:
        match said:
            case Aboard(replica, fingerprint) if fingerprint != self._fingerprint:
                log.error("replica computes otherwise", replica=replica, has=fingerprint, expected=self._fingerprint)
                raise ReplicaLost("it computes otherwise")
            case Told(deltas, prefill_s):
                for delta in deltas:
                    entry.hear(delta)
                    entry.stream.put(delta)
                if prefill_s is not None:
                    entry.stream.life.hear_prefill(prefill_s)
                    self._cluster.begun(entry.stream.id)
            case Unable(reason):
                raise ReplicaLost(reason)
            case Fault(message):
                raise InternalError(message, retryable=False)


def _refuse_adapters(_: object) -> NoReturn:
    raise AssertionError("there are no adapters")
