"""The engine as the API process sees it: an asyncio facade over the child process."""

import asyncio
import contextlib
import itertools
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec

from model.batch import Sampling
from server.config import EngineOptions
from server.engine.messages import Cancel, Delta, Failed, FromEngine, ModelCard, Progress, Ready, Stats, Step, Submit
from server.engine.wire import frame, read_frame
from server.errors import EngineGone, ModelLoading, Overloaded

_KILL_AFTER_S = 5.0
_GONE = "the engine process ended unexpectedly"
_STOPPING = "the server stops"


@dataclass(frozen=True, slots=True)
class Order:
    """A sequence to run."""

    prompt: list[int]
    max_tokens: int
    ending_ids: list[int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Stages:
    """How long a sequence took for each part of its life, in seconds; None for parts that it did not reach."""

    queue_s: float
    prefill_s: float | None
    decode_s: float | None


@dataclass(slots=True)
class _Life:
    """When a sequence reached what, on the monotonic clock."""

    submitted: float
    started: float | None = None
    first_token: float | None = None

    def stages(self) -> Stages:
        now = time.monotonic()
        if self.started is None:
            return Stages(now - self.submitted, None, None)
        queue_s = self.started - self.submitted
        if self.first_token is None:
            return Stages(queue_s, None, None)
        return Stages(queue_s, self.first_token - self.started, now - self.first_token)


class TokenStream:
    """The deltas of one sequence, the last of which has a finish reason.

    A slow reader costs nothing but memory for its tokens: the engine never waits for it.
    """

    def __init__(self, id: int, cancel: Callable[[int], None]) -> None:
        self.id = id
        self._cancel = cancel
        self._deltas: list[Delta] = []
        self._is_over = False
        self.life = _Life(time.monotonic())
        self._arrival = asyncio.Event()

    def put(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self._is_over = delta.finish is not None
        self._arrival.set()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while True:
            await self._arrival.wait()
            self._arrival.clear()
            deltas, self._deltas = self._deltas, []
            for delta in deltas:
                yield delta
                if delta.finish is not None:
                    return

    def cancel(self) -> None:
        """Lets the engine forget the sequence; may be called at any time and any number of times."""
        if not self._is_over:
            self._is_over = True
            self._cancel(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who else wants to know what the engine says."""

    on_progress: Callable[[Progress], None] = lambda progress: None
    on_ready: Callable[[Ready], None] = lambda ready: None
    on_stats: Callable[[Stats], None] = lambda stats: None  # after every step
    on_end: Callable[[Stages], None] = lambda stages: None  # of a sequence, whichever way
    on_failure: Callable[[str], None] = lambda reason: None


class EngineClient:
    """Starts the engine, hands it orders and hands out what comes back. Belongs to one event loop."""

    def __init__(self, options: EngineOptions, max_queue: int, listener: Listener | None = None) -> None:
        self.card: ModelCard | None = None  # known once the checkpoint's header is read
        self.ready: Ready | None = None  # known once the engine computes
        self.progress: Progress | None = None  # the last news of the start
        self.failure: str | None = None  # why the engine is gone
        self.stats: Stats | None = None  # after the last step
        self._options = options
        self._max_queue = max_queue
        self._listener = listener or Listener()
        self._streams: dict[int, TokenStream] = {}
        self._ids = itertools.count(1)
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the child and returns at once."""
        ours, theirs = socket.socketpair()
        # -P keeps the working directory off the import path: a user's own model.py must not shadow ours.
        command = [sys.executable, "-P", "-m", "server.engine.loop", str(theirs.fileno())]
        self._process = await asyncio.create_subprocess_exec(*command, pass_fds=[theirs.fileno()], stdin=DEVNULL)
        theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.write(frame(self._options))
        self._reading = asyncio.create_task(self._read(reader))

    async def stop(self) -> None:
        """Ends the child; streams that still run end with an error."""
        if self._process is None or self._writer is None or self._reading is None:
            return
        self.failure = self.failure or _STOPPING
        self._writer.close()  # the engine exits when it finds its inbox closed
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        await _end(self._process)
        self._end_streams(self.failure)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def live(self) -> int:
        """Sequences that were submitted and have neither finished nor been cancelled."""
        return len(self._streams)

    @property
    def longest(self) -> int:
        """Tokens that one sequence can ever reach: the context, or less where the cache is smaller."""
        assert self.card is not None, "asked before the model is known"
        assert self.ready is not None, "asked before the cache is sized"
        return min(self.card.context_length, self.ready.total_blocks * self.ready.block_size)

    def submit(self, orders: list[Order]) -> list[TokenStream]:
        """Queues all of them or raises ModelLoading, EngineGone, Overloaded: nothing is queued halfway."""
        if self.failure is not None:
            raise EngineGone("The engine is not running.")
        if self.ready is None or self._writer is None:
            raise ModelLoading("The model is loading.")
        if self.live + len(orders) > self._options.max_sequences + self._max_queue:
            raise Overloaded("The server is overloaded: its queue is full.")
        streams = []
        for order in orders:
            stream = TokenStream(next(self._ids), self._cancel)
            self._streams[stream.id] = stream
            streams.append(stream)
            message = Submit(stream.id, order.prompt, order.max_tokens, order.ending_ids, order.sampling)
            self._writer.write(frame(message))
        return streams

    def _cancel(self, id: int) -> None:
        stream = self._streams.pop(id, None)
        if stream and self._writer and self.failure is None:
            self._writer.write(frame(Cancel(id)))
            self._listener.on_end(stream.life.stages())

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hands on every message until the engine is gone."""
        decoder = msgspec.msgpack.Decoder(FromEngine)
        try:
            while True:
                self._hear(decoder.decode(await read_frame(reader)))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._end_streams(self.failure or _GONE)
            self._listener.on_failure(self.failure or _GONE)

    def _hear(self, message: FromEngine) -> None:
        match message:
            case Step():
                self._take(message)
            case Progress():
                self.progress = message
                self._listener.on_progress(message)
            case ModelCard():
                self.card = message
            case Ready():
                self.ready = message
                self._listener.on_ready(message)
            case Failed(reason):
                self.failure = reason

    def _take(self, step: Step) -> None:
        self.stats = step.stats
        self._listener.on_stats(step.stats)
        now = time.monotonic()
        for id in step.started:
            if id in self._streams:
                life = self._streams[id].life
                life.started = max(life.submitted, now - step.stats.step_seconds)  # the news come at the step's end
        for delta in step.deltas:
            stream = self._streams.get(delta.id)
            if stream is None:
                continue  # cancelled while this was on its way
            stream.life.first_token = stream.life.first_token or now
            stream.put(delta)
            if delta.finish is not None:
                del self._streams[delta.id]
                self._listener.on_end(stream.life.stages())

    def _end_streams(self, reason: str) -> None:
        """Nothing more will come: whoever still waits is told so."""
        self.failure = reason
        streams, self._streams = self._streams, {}
        for id, stream in streams.items():
            stream.put(Delta(id, [], None, "error", 0, "the engine is gone"))


async def _end(process: Process) -> None:
    """Waits for the child to leave by itself, and not for ever."""
    try:
        await asyncio.wait_for(process.wait(), _KILL_AFTER_S)
    except TimeoutError:
        process.kill()
        await process.wait()
