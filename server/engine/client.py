"""The engine as the API process sees it: an asyncio facade that outlives the processes behind it."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from server.config import EngineOptions
from server.engine.adapters import Adapter, Adapters, Refused
from server.engine.journal import Entry, Journal
from server.engine.messages import (
    AdapterLoaded,
    AdapterRefused,
    Cancel,
    FromEngine,
    ModelCard,
    Progress,
    Ready,
    Recorded,
    Started,
    Stats,
    Step,
    ToEngine,
)
from server.engine.streams import Order, Stages, TokenStream
from server.engine.supervisor import Care, Cause, Supervisor
from server.errors import EngineGone, HeadraceError, InternalError, ModelLoading, ModelNotFound, Overloaded
from server.logs import Log

_STOPPING = "the server stops"
TOTALS = (  # what an engine counts from 0
    "preemptions",
    "prefix_queries",
    "prefix_hits",
    "drafts_proposed",
    "drafts_accepted",
    "invariant_violations",
)

log = Log(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who else wants to know what the engine says."""

    on_progress: Callable[[Progress], None] = lambda progress: None  # of the first start
    on_card: Callable[[ModelCard], None] = lambda card: None  # whenever an engine has read the checkpoint's header
    on_ready: Callable[[Ready], None] = lambda ready: None  # whenever one is
    on_stats: Callable[[Stats], None] = lambda stats: None  # after every step
    on_end: Callable[[Stages], None] = lambda stages: None  # of a sequence, whichever way
    on_restart: Callable[[Cause, int], None] = lambda cause, resumed: None  # and how many sequences wait to go on
    on_failure: Callable[[str], None] = lambda reason: None  # there will be no engine any more


class EngineClient:
    """Hands orders to the engine and hands out what comes of them. Belongs to one event loop.

    An engine that ends is replaced, and every live sequence goes on in the next one: a token depends on the tokens
    before it and the request, so the readers of a stream notice nothing but the time it takes.
    """

    def __init__(
        self,
        options: EngineOptions,
        max_queue: int,
        listener: Listener | None = None,
        care: Care | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        """`adapters` are folders by name, which every engine reads before it takes orders."""
        self.card: ModelCard | None = None  # known once the checkpoint's header is read
        self.ready: Ready | None = None  # known once an engine has computed
        self.progress: Progress | None = None  # the last news of a start
        self.failure: str | None = None  # why there is no engine and will be none
        self.stats: Stats | None = None  # after the last step; totals are over all engines
        self.is_up = False  # an engine takes orders now
        self._options = options
        self._max_queue = max_queue
        self._listener = listener or Listener()
        self._care = care or Care()
        self._supervisor = Supervisor(options, self._care, self._hear, self._lose)
        self._supervising: asyncio.Task[None] | None = None
        self._journal = Journal()
        self.adapters = Adapters(adapters or {}, self._tell, lambda digest: self._journal.uses(digest))
        self._equipping: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._ids = itertools.count(1)
        self._earlier: Stats | None = None  # what the engines before this one have counted
        self._down_since = 0.0

    async def start(self) -> None:
        """Starts the first engine and returns at once."""
        self._supervising = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Ends the engine; streams that still run end with an error."""
        if self._supervising is None:
            return
        self.failure = self.failure or _STOPPING
        self._supervising.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._supervising

    def kill(self) -> None:
        """As `stop`, at once: without waiting for the step that the engine computes."""
        if self._supervising is not None and self._supervisor.child is not None:
            self.failure = self.failure or _STOPPING
            self._supervising.cancel()
            self._supervisor.child.kill()

    @property
    def pid(self) -> int | None:
        return self._supervisor.child.pid if self._supervisor.child else None

    @property
    def is_hung(self) -> bool:
        """The engine has given no sign of life for too long."""
        return self._supervisor.is_hung

    @property
    def is_silent(self) -> bool:
        """It has given none for half as long."""
        return self._supervisor.is_silent

    @property
    def live(self) -> int:
        """Sequences that were submitted and have neither finished nor been cancelled."""
        return len(self._journal)

    @property
    def longest(self) -> int:
        """Tokens that one sequence can ever reach: the context, or less where the cache is smaller."""
        assert self.card is not None, "asked before the model is known"
        assert self.ready is not None, "asked before the cache is sized"
        return min(self.card.context_length, self.ready.total_blocks * self.ready.block_size)

    def check(self) -> None:
        """Raises what `submit` would raise for reasons of the engine's life."""
        if self.failure is not None:
            raise EngineGone("The engine is not running.", retry_after_s=10.0)
        if self.ready is None:
            raise ModelLoading("The model is loading.")
        if not self.is_up and time.monotonic() - self._down_since > self._care.resume_window_s:
            raise EngineGone("The engine is restarting.", retry_after_s=5.0)

    def submit(self, orders: list[Order]) -> list[TokenStream]:
        """Queues all of them or raises ModelLoading, EngineGone, Overloaded: nothing is queued halfway."""
        self.check()
        if self.live + len(orders) > self._options.max_sequences + self._max_queue:
            raise Overloaded("The server is overloaded: its queue is full.")
        for order in orders:
            if order.adapter is not None and order.adapter not in self.adapters:  # unloaded since it was asked for
                raise ModelNotFound(f"adapter {order.adapter[:16]}")
        streams = [TokenStream(next(self._ids), self._cancel) for _ in orders]
        for order, stream in zip(orders, streams, strict=True):
            self._journal.add(order, stream)
        self._dispatch()
        return streams

    async def load_adapter(self, name: str, folder: Path) -> Adapter:
        """Raises BadRequest, and EngineGone where there is no engine now, or before it has answered."""
        self.check()
        if not self.is_up:
            raise EngineGone("The engine is restarting.")
        return await self.adapters.load(name, folder)

    async def idle(self) -> None:
        """Returns when no sequence is live."""
        while self.live:
            self._idle.clear()
            await self._idle.wait()

    def fail_all(self, error: HeadraceError) -> None:
        """Ends every live sequence: its reader gets what there is and then the error."""
        for stream in self._journal.streams:
            stream.fail(error)
            self._cancel(stream.id)

    def _cancel(self, id: int) -> None:
        entry = self._journal.remove(id)
        if entry is None:
            return
        if entry.run is not None:
            self._send(Cancel(entry.run))
        self._end(entry)
        self._dispatch()  # it may have been on trial

    def _end(self, entry: Entry) -> None:
        """The sequence is no longer live."""
        self._listener.on_end(entry.stream.life.stages())
        if entry.order.adapter is not None:
            self.adapters.sweep()
        if not self.live:
            self._idle.set()

    def _dispatch(self) -> None:
        """Sends the engine what is due."""
        if self.is_up:
            for entry in self._journal.due():
                self._send(entry.submit())

    def _send(self, message: ToEngine) -> None:
        if self.is_up:
            self._tell(message)

    def _tell(self, message: ToEngine) -> None:
        """Also one that takes no orders yet."""
        if self._supervisor.child is not None:
            self._supervisor.child.send(message)

    async def _supervise(self) -> None:
        reason = self.failure or "the engine's supervision failed"
        try:
            reason = await self._supervisor.run()
        except OSError as error:
            reason = f"no engine process can be started: {error.strerror}"
        finally:
            self._give_up(self.failure or reason)

    def _give_up(self, reason: str) -> None:
        """Nothing more will come: whoever still waits is told so."""
        self.is_up = False
        self.failure = reason
        self.adapters.lose_engine()
        for stream in self._journal.streams:
            stream.fail(EngineGone("The engine has stopped and left this request unfinished."))
        self._journal = Journal()
        if reason != _STOPPING:
            self._listener.on_failure(reason)

    def _lose(self, cause: Cause) -> bool:
        """The engine has ended; True if a sequence was found guilty of it, which is then no longer live."""
        self.is_up = False
        self._down_since = time.monotonic()
        self._earlier = self.stats
        self.adapters.lose_engine()
        guilty = self._journal.lose_engine()
        for entry in guilty:
            log.error("request ends the engine", sequence=entry.stream.id, tokens=len(entry.output))
            message = "The server failed on this request, again and again."
            entry.stream.fail(InternalError(message, retryable=False))
            self._end(entry)
        self._listener.on_restart(cause, self.live)
        return bool(guilty)

    def _hear(self, message: FromEngine) -> None:
        match message:
            case Step():
                self._take(message)
            case Started(runs):
                for entry in self._journal.start(runs):
                    entry.stream.life.started = entry.stream.life.started or time.monotonic()
            case Progress():
                self.progress = message
                if self.ready is None:
                    self._listener.on_progress(message)
            case ModelCard():
                self.card = message
                self._listener.on_card(message)
            case AdapterLoaded() | AdapterRefused():
                self.adapters.hear(message)
            case Recorded(sizes, seconds):
                log.info("steps recorded", sizes=sizes, seconds=round(seconds, 1))
            case Ready() if self.adapters.are_wanted:
                self._equipping = asyncio.create_task(self._equip(message))
            case Ready():
                self._resume(message)

    async def _equip(self, ready: Ready) -> None:
        """Orders wait until the engine has every adapter."""
        try:
            await self.adapters.equip()
        except EngineGone:
            return  # so will the next one
        except Refused as error:
            self.failure = str(error)
            if self._supervising is not None:
                self._supervising.cancel()
            return
        self._resume(ready)

    def _resume(self, ready: Ready) -> None:
        """An engine is there to go on with everything."""
        self.ready, self.is_up = ready, True
        self._listener.on_ready(ready)
        for entry in self._journal.beyond(self.longest):  # less memory was free than for the engine before
            entry.stream.fail(EngineGone("The engine was replaced and has no room for this request any more."))
            self._cancel(entry.stream.id)
        for entry in self._journal.lacking(self.adapters):
            entry.stream.fail(EngineGone("The engine was replaced and finds this request's adapter no more."))
            self._cancel(entry.stream.id)
        self._dispatch()

    def _take(self, step: Step) -> None:
        self.stats = _add_totals(step.stats, self._earlier)
        self._listener.on_stats(self.stats)
        for delta in step.deltas:
            entry = self._journal.record(delta)
            if entry is None:
                continue  # cancelled while this was on its way
            entry.stream.put(delta)
            if delta.finish is not None:
                self._end(entry)
        if (acquitted := self._journal.acquit()) is not None:
            self._send(Cancel(acquitted))
        self._dispatch()  # whoever was alone with the engine may have left it


def _add_totals(stats: Stats, earlier: Stats | None) -> Stats:
    """Counters do not fall when an engine is replaced."""
    if earlier is None:
        return stats
    sums = {name: getattr(stats, name) + getattr(earlier, name) for name in TOTALS}
    return msgspec.structs.replace(stats, **sums)
