"""How long the engine's steps take on this machine: the real scheduler's batches through the real runner, timed."""

import os
import platform
import random
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from tqdm import tqdm

from bench.simulation.step_time import Measured, Quality, Shape, StepTime, fit
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
LARGEST = 3072  # of their contexts in sum, so that all of it takes minutes
NEWCOMERS = (24, 100, 400)  # tokens of prompts that join them
STEPS = 8  # of decoding alone


@dataclass(frozen=True, slots=True)
class Timed:
    """One step."""

    shape: Shape
    seconds: float


def measure(options: EngineOptions, rounds: int) -> Measured:
    """Fits the median of so many rounds of the same steps. Takes a minute for two of them."""
    model = open_for(options, lambda *_: None)
    plan = model.plan()
    runner = load(model, plan, lambda *_: None)
    limits = Limits(options.max_sequences, options.step_tokens, context_rate=model.config.context_rate)
    step_time, quality = _fit_medians(_rounds(runner, limits, plan.num_blocks, rounds))
    return Measured(
        machine=machine(),
        model=options.model,
        threads=options.threads or len(os.sched_getaffinity(0)),
        kv_memory=options.kv_memory or plan.num_blocks * plan.block / 2**30,
        kv_blocks=plan.num_blocks,
        max_sequences=limits.max_sequences,
        step_tokens=limits.step_tokens,
        context_rate=limits.context_rate,
        context_length=model.config.context_length,
        time=step_time,
        quality=quality,
    )


def _fit_medians(steps: Iterable[Timed]) -> tuple[StepTime, Quality]:
    """Of steps of the same shape the median counts, once."""
    times: dict[Shape, list[float]] = {}
    for step in steps:
        times.setdefault(step.shape, []).append(step.seconds)
    return fit([*times], [statistics.median(seconds) for seconds in times.values()])


def _scenes() -> list[tuple[int, int]]:
    return [(decoding, context) for decoding, context in product(DECODING, CONTEXTS) if decoding * context <= LARGEST]


def _rounds(runner: Runner, limits: Limits, blocks: int, rounds: int) -> Iterator[Timed]:
    for _, (decoding, context) in tqdm([*product(range(rounds), _scenes())], unit="scene"):
        yield from _scene(runner, limits, blocks, decoding, context)


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
