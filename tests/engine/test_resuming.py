"""Kill the engine after token k, for every k in 1..32: no reader can tell."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from model.batch import Sampling
from server.config import EngineOptions
from server.engine.client import EngineClient, Listener
from server.engine.messages import Delta, Stats
from server.engine.streams import Order, TokenStream
from server.engine.supervisor import Care

FAULTY_ENGINE = Path(__file__).parents[1] / "end_to_end" / "faulty_engine.py"
SHARED = [(7 * place) % 250 for place in range(32)]  # two blocks of prompt
TOKENS = 40
DEPTHS = range(1, 33)


class Gated:
    """An engine that makes a step only when it is let to."""

    def __init__(self, model: Path, arrivals: Path, gate: Path) -> None:
        os.mkfifo(arrivals)
        os.mkfifo(gate)
        self.arrivals, self.gate = (os.open(fifo, os.O_RDWR) for fifo in (arrivals, gate))
        self.is_free = True
        self.is_ready = asyncio.Event()
        self.restarts: list[tuple[str, int]] = []
        self.is_lost = asyncio.Event()
        listener = Listener(
            on_ready=lambda ready: self.is_ready.set(),
            on_stats=self._on_step,
            on_restart=self._on_restart,
        )
        command = (sys.executable, "-P", str(FAULTY_ENGINE))
        options = EngineOptions(model=str(model), max_sequences=2 * len(DEPTHS))
        self.client = EngineClient(options, 1, listener, Care(command=command))

    def _on_step(self, stats: Stats) -> None:
        if self.is_free:
            self.let_step()

    def _on_restart(self, cause: str, resumed: int) -> None:
        self.restarts.append((cause, resumed))
        self.is_lost.set()

    def let_step(self) -> None:
        os.write(self.gate, b".")

    def hold(self) -> None:
        """From now on, while the engine is idle."""
        self.is_free = False
        os.read(self.gate, 1)  # what the last step has let go
        os.read(self.arrivals, 1 << 16)

    async def arrival(self) -> None:
        """The engine is about to compute a step, and has read what was submitted before the last one was let go."""
        await asyncio.wait_for(asyncio.to_thread(os.read, self.arrivals, 1), 30)


@pytest.fixture
async def gated(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gated]:
    fifos = tmp_path / "arrivals", tmp_path / "gate"
    for name, fifo in zip(("ARRIVALS", "GATE"), fifos, strict=True):
        monkeypatch.setenv(name, str(fifo))
    gated = Gated(tiny_model, *fifos)
    await gated.client.start()
    await asyncio.wait_for(gated.is_ready.wait(), 120)
    yield gated
    await gated.client.stop()
    for fifo in (gated.arrivals, gated.gate):
        os.close(fifo)


def orders(depth: int) -> list[Order]:
    """One of each kind, unlike those of any other depth behind the part that all share."""
    greedy = Sampling(temperature=0.0, top_logprobs=3)
    drawn = Sampling(temperature=1.3, seed=depth, top_p=0.95, frequency_penalty=0.5, top_logprobs=1)
    prompt = [*SHARED, depth, depth + 1, 99]
    return [Order(prompt, TOKENS, [], greedy), Order([*prompt, 7], TOKENS, [], drawn)]


async def read(stream: TokenStream, into: list[Delta]) -> None:
    async for delta in stream:
        into.append(delta)  # noqa: PERF401 - the test looks at what has come so far


def told(deltas: list[Delta]) -> dict[str, object]:
    """Everything but the id; logprobs as they are, to the last bit."""
    return {
        "tokens": [token for delta in deltas for token in delta.tokens],
        "logprobs": [entry for delta in deltas for entry in delta.logprobs or []],
        "cached_tokens": {delta.cached_tokens for delta in deltas},
        "finish": deltas[-1].finish,
    }


async def test_a_kill_after_any_token_changes_nothing(gated: Gated) -> None:
    gated.let_step()
    for stream in gated.client.submit([Order(SHARED, 1, [], Sampling())]):
        await read(stream, [])  # from here on the shared blocks are cached
    golden: list[list[Delta]] = []
    for depth in DEPTHS:
        for stream in gated.client.submit(orders(depth)):
            golden.append([])
            await read(stream, golden[-1])

    gated.hold()
    resumed: list[list[Delta]] = [[] for _ in golden]
    readers = []
    for depth in DEPTHS:
        for stream in gated.client.submit(orders(depth)):
            readers.append(asyncio.create_task(read(stream, resumed[len(readers)])))
        if depth > 1:
            gated.let_step()
        await gated.arrival()
    gated.let_step()
    await gated.arrival()
    async with asyncio.timeout(30):
        while len(resumed[0]) < len(DEPTHS):  # noqa: ASYNC110 - until what the engine has said is read
            await asyncio.sleep(0)
    assert {sum(len(delta.tokens) for delta in deltas) for deltas in resumed} >= set(DEPTHS)
    first = gated.client.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await asyncio.wait_for(gated.is_lost.wait(), 30)  # an engine killed at the gate may still take what is let go
    gated.is_free = True
    gated.let_step()
    await asyncio.wait_for(asyncio.gather(*readers), 120)

    assert gated.restarts == [("crash", len(golden))]
    assert gated.client.pid != first
    assert [told(deltas) for deltas in resumed] == [told(deltas) for deltas in golden]
    assert told(resumed[0])["cached_tokens"] == {len(SHARED)}
