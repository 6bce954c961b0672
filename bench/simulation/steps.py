"""How long the engine's steps take on this machine: the real scheduler's batches through the real runner, timed."""

import os
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from tqdm import tqdm

from bench.simulation.step_time import Measured, Shape, fit
from model.batch import Sampling
from model.loading import load
from model.runner import Runner
from server.config import EngineOptions
from server.engine.block_pool import BlockPool
from server.engine.loop import open_for
from server.engine.messages import Submit
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence

DECODING = (1, 2, 4, 8, 16, 32)  # sequences side by side
CONTEXTS = (32, 256, 1024, 3072)  # tokens of each
NEWCOMERS = (24, 100, 700)  # tokens of prompts that join them
STEPS = 6  # of decoding alone


@dataclass(frozen=True, slots=True)
class Timed:
    """One step."""

    shape: Shape
    seconds: float


def measure(options: EngineOptions, rounds: int) -> Measured:
    """Fits the median of so many rounds of the same steps. Takes minutes."""
    model = open_for(options, lambda *_: None)
    plan = model.plan()
    runner = load(model, plan, lambda *_: None)
    limits = Limits(options.max_sequences, options.step_tokens, context_rate=model.config.context_rate)
    scenes = [scene for scene in product(DECODING, CONTEXTS) if scene[0] * (scene[1] + 64) < plan.num_blocks * 12]
    times: dict[Shape, list[float]] = {}
    for _, (decoding, context) in tqdm([*product(range(rounds), scenes)], unit="scene"):
        for timed in _scene(runner, limits, plan.num_blocks, decoding, context):
            times.setdefault(timed.shape, []).append(timed.seconds)
    medians = {shape: sorted(seconds)[len(seconds) // 2] for shape, seconds in times.items()}
    step_time, quality = fit([*medians], [*medians.values()])
    return Measured(
        machine=machine(),
        model=options.model,
        threads=options.threads or len(os.sched_getaffinity(0)),
        kv_blocks=plan.num_blocks,
        max_sequences=limits.max_sequences,
        step_tokens=limits.step_tokens,
        context_rate=limits.context_rate,
        context_length=model.config.context_length,
        time=step_time,
        quality=quality,
    )


def _scene(runner: Runner, limits: Limits, blocks: int, decoding: int, context: int) -> Iterator[Timed]:
    """Prompts are read, all of them decode, then others join: every kind of step that a server has."""
    scheduler = Scheduler(limits, BlockPool(blocks, prefix_cache=False))
    for id in range(decoding):
        scheduler.add(_sequence(id, context, 1000))
    while any(sequence.pending > 1 for sequence in [*scheduler.running, *scheduler.waiting]):
        yield _step(scheduler, runner)
    for _ in range(STEPS):
        yield _step(scheduler, runner)
    for id, tokens in enumerate(NEWCOMERS, decoding):
        scheduler.add(_sequence(id, tokens, 1))
        while len(scheduler.running) > decoding or scheduler.waiting:
            yield _step(scheduler, runner)


def _sequence(id: int, tokens: int, answer: int) -> Sequence:
    prompt = random.Random(id).choices(range(1000, 40000), k=tokens)
    return Sequence.of(Submit(id, prompt, answer, [], Sampling(temperature=0.0)))


def _step(scheduler: Scheduler, runner: Runner) -> Timed:
    start = time.perf_counter()
    batch = scheduler.schedule()
    assert batch is not None, "nothing ends so soon"
    shape = Shape.of(batch)
    scheduler.apply(runner.run(batch))
    return Timed(shape, time.perf_counter() - start)


def machine() -> str:
    """This one, in words."""
    with open("/proc/cpuinfo") as lines:
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    vectors = [name for name in ("avx2", "avx512f") if name in facts.get("flags", "").split()]
    return f"{len(os.sched_getaffinity(0))} cores, {facts.get('model name', platform.machine())} ({', '.join(vectors)})"
