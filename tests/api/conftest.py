"""The real app on a real port, with the real text tools, on an engine that says what the test wants."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from bytes_model import EOS, LONGEST, SPECIAL_TOKENS, TEMPLATE, VOCABULARY, bytes_tokenizer
from fastapi import FastAPI

from model.batch import Finding, Logprobs
from server.api.resumable import ResumableStreams
from server.api.service import AppOptions
from server.app import create_app
from server.engine.adapters import Adapters
from server.engine.messages import Delta, ModelCard, Progress, Ready, Stats
from server.engine.streams import Order, TokenStream
from server.errors import EngineGone, Overloaded
from server.metrics import Metrics
from server.protocol import Patience, protocol_class
from server.spans import Tracer
from server.text_tools import load_text

STATS = Stats(
    running=1,
    waiting=2,
    blocks_free=5,
    blocks_cached=2,
    blocks_used=3,
    preemptions=4,
    prefix_queries=60,
    prefix_hits=16,
    drafts_proposed=20,
    drafts_accepted=12,
    step_tokens=7,
    step_seconds=0.004,
    invariant_violations=0,
)


def byte_card() -> ModelCard:
    return ModelCard(
        name="bytes",
        family="none",
        vocab_size=VOCABULARY,
        dim=8,
        context_length=LONGEST,
        tokenizer=bytes_tokenizer().to_str(),
        chat_template=TEMPLATE,
        special_tokens=SPECIAL_TOKENS,
        eos_ids=[EOS],
    )


class FakeEngine:
    """Says `answer` to every order, one byte a step, then EOS; or, once held, only what the test lets it say."""

    longest = LONGEST

    def __init__(self) -> None:
        self.card: ModelCard | None = byte_card()
        self.progress: Progress | None = Progress("weights", 3, 10, "tensors")
        self.ready: Ready | None = Ready(
            device="cpu",
            dtype="float32",
            kv_dtype="float16",
            kernels="portable",
            is_exact=True,
            weights="0" * 64,
            block_size=16,
            block_bytes=1,
            total_blocks=10,
            memory_plan="",
            step_seconds=0,
        )
        self.failure: str | None = None
        self.is_up = True
        self.is_hung = False
        self.stats: Stats | None = STATS
        self.answer = "Hello, world!"
        self.is_held = False
        self.is_full = False
        self.orders: list[Order] = []
        self.streams: list[TokenStream] = []
        self.cancelled: list[int] = []
        self.adapters = Adapters({}, lambda message: None, lambda digest: False)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: list[tuple[Callable[[], bool], Future[None]]] = []

    def change(self, **fields: object) -> None:
        """Goes on as an engine of another kind."""
        self.ready = msgspec.structs.replace(self.ready, **fields)

    def forget(self) -> None:
        self.orders.clear()
        self.streams.clear()
        self.cancelled.clear()

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def submit(self, orders: list[Order]) -> list[TokenStream]:
        if self.failure is not None:
            raise EngineGone("The engine is not running.")
        if self.is_full:
            raise Overloaded("The queue is full.", retry_after_s=2.5)
        streams = [TokenStream(len(self.streams) + place, self._cancel) for place in range(len(orders))]
        for stream in streams:
            stream.life.started = time.monotonic()
        self.orders += orders
        self.streams += streams
        if not self.is_held:
            task = asyncio.create_task(self._answer(orders, streams))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._changed()
        return streams

    async def _answer(self, orders: list[Order], streams: list[TokenStream]) -> None:
        """Moves every sequence by one token, lets the readers run, and so on."""
        for order, stream in zip(orders, streams, strict=True):
            if order.reading is not None:
                finish = None if order.max_tokens else "length"
                stream.put(Delta(stream.id, [], None, finish, 1, finding=finding(order)))
        said = [[*self.answer.encode(), EOS][: order.max_tokens] for order in orders]
        for step in range(max(map(len, said))):
            for order, stream, tokens in zip(orders, streams, said, strict=True):
                if step < len(tokens):
                    is_last = step == len(tokens) - 1
                    ends = "stop" if tokens[step] in order.ending_ids else "length"
                    stream.put(delta(order, stream.id, tokens[step], ends if is_last else None))
            await asyncio.sleep(0)

    def _cancel(self, id: int) -> None:
        self.cancelled.append(id)
        self._changed()

    def say(self, place: int, text: str, finish: str | None = None, error: str | None = None) -> None:
        """From any thread: sequence `place` goes on by `text`, in one step."""
        self.loop.call_soon_threadsafe(self.put, place, text, finish, error)

    def find(self, place: int) -> None:
        """From any thread: sequence `place` has been read, and ends."""
        self.loop.call_soon_threadsafe(self._put_finding, place)

    def _put_finding(self, place: int) -> None:
        stream = self.streams[place]
        stream.put(Delta(stream.id, [], None, "length", 0, finding=finding(self.orders[place])))

    def put(self, place: int, text: str, finish: str | None = None, error: str | None = None) -> None:
        stream = self.streams[place]
        stream.put(Delta(stream.id, list(text.encode()), None, finish, 0, error))

    def wait_until(self, is_true: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """From any thread: until an order or a cancellation makes it true."""
        reached: Future[None] = Future()
        self.loop.call_soon_threadsafe(self._watch, is_true, reached)
        reached.result(timeout_s)

    def _watch(self, is_true: Callable[[], bool], reached: Future[None]) -> None:
        self._watchers.append((is_true, reached))
        self._changed()

    def _changed(self) -> None:
        for is_true, reached in self._watchers:
            if not reached.done() and is_true():
                reached.set_result(None)


def delta(order: Order, id: int, token: int, finish: str | None) -> Delta:
    wanted = order.sampling.top_logprobs
    if wanted is None:
        return Delta(id, [token], None, finish, 1)
    return Delta(id, [token], [logprobs(token, wanted)], finish, 1)


def logprobs(token: int, wanted: int) -> Logprobs:
    chosen = -0.1 - token / 1000
    return Logprobs(
        chosen, [(token, chosen), *((token + place, chosen - place) for place in range(1, wanted))][:wanted]
    )


def finding(order: Order) -> Finding:
    """Each token of a prompt is as likely as in an answer; a vector has the prompt's first tokens, then zeros."""
    reading = order.reading
    rows = reading.stop(len(order.prompt)) - reading.start
    if reading.top_logprobs is None:
        numbers = [*order.prompt[reading.start :], *[0] * 8][: reading.dimensions or 8]
        return Finding(rows=rows, vector=struct.pack(f"<{len(numbers)}f", *numbers))
    tokens = order.prompt[reading.start + 1 :]
    return Finding(rows=rows, logprobs=[logprobs(t, reading.top_logprobs) for t in tokens], ranks=[7] * rows)


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    port: int
    engine: FakeEngine
    metrics: Metrics
    app: FastAPI
    http: httpx.Client
    _before: dict[str, float] = field(default_factory=dict)

    @property
    def streams(self) -> ResumableStreams:
        return self.app.state.service.streams

    def start_anew(self) -> None:
        """Forgets what earlier tests left in counters and in the engine."""
        self.engine.forget()
        self._before.clear()
        self._before.update(self._series())

    def gained(self, series: str) -> float:
        """By how much a series has grown, named as /metrics prints it, labels included."""
        return self._series().get(series, 0.0) - self._before.get(series, 0.0)

    def wait_for(self, series: str, gain: float) -> None:
        deadline = time.monotonic() + 5
        while self.gained(series) != gain:
            assert time.monotonic() < deadline, f"{series} has gained {self.gained(series)}, not {gain}"

    def _series(self) -> dict[str, float]:
        lines = (line.rpartition(" ") for line in self.http.get("/metrics").text.splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in lines}

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def send(self, path: str, body: bytes, *headers: str) -> socket.socket:
        """A POST over a socket of its own, which is given back as it stands after the last byte."""
        connection = self.connect()
        head = [f"POST {path} HTTP/1.1", "Host: test", "Content-Type: application/json"]
        head += [f"Content-Length: {len(body)}", *headers, "", ""]
        connection.sendall("\r\n".join(head).encode() + body)
        return connection


@contextmanager
def serving(
    engine: FakeEngine | None = None, patience: Patience | None = None, tracer: Tracer | None = None, **options: Any
) -> Iterator[Served]:
    """Accepts connections at once, because the socket listens before the server runs."""
    engine = engine or FakeEngine()
    metrics = Metrics()
    app = create_app(AppOptions(**options), engine, metrics, lambda card: load_text(card, engine), tracer=tracer)
    config = uvicorn.Config(
        app, log_config=None, loop="uvloop", http=protocol_class(patience or Patience()), ws="none", access_log=False
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=10) as http:
                http.get("/health/live")
                yield Served(url, port, engine, metrics, app, http)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def stats() -> Stats:
    return STATS


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """Shared by tests that leave no trace in it."""
    with serving(max_body_bytes=2**17) as served:
        yield served


@pytest.fixture
def own_server() -> Iterator[Served]:
    """For tests that look at counters or change what the engine does."""
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def start_server() -> Iterator[Callable[..., Served]]:
    """For servers that the tests of a file share."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(serving(*args, **options))


@pytest.fixture
def serving_for_a_while() -> Callable[..., AbstractContextManager[Served]]:
    """For tests that look at what is left when a server has ended."""
    return serving


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """For tests that need options of their own."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(serving(*args, **options))
