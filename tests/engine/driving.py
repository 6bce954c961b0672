"""How the scheduler's tests drive it by hand: queue prompts, look at the next step, answer it."""

import math

from model.batch import Sample, Sampling, StepResult
from server.engine.block_pool import BlockPool
from server.engine.messages import Delta, Submit
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence

SIZE = 4
NEXT = 7  # the token that the model chooses, always
END = 8  # and one that it never does, unless told


def scheduler(
    blocks: int = 64, sequences: int = 8, budget: int = 100, prefix_cache: bool = True, context_rate: float = math.inf
) -> Scheduler:
    return Scheduler(Limits(sequences, budget, context_rate=context_rate), BlockPool(blocks, SIZE, prefix_cache))


def add(to: Scheduler, id: int, prompt: list[int] | int, max_tokens: int = 10, priority: int = 0) -> Sequence:
    """Queues a prompt, or one of so many tokens that no other id's prompt shares."""
    tokens = [1000 * id + position for position in range(prompt)] if isinstance(prompt, int) else prompt
    order = Submit(
        id=id,
        prompt=tokens,
        max_tokens=max_tokens,
        ending_ids=[END],
        sampling=Sampling(seed=id),
        priority=priority,
    )
    to.add(Sequence.of(order))
    return to._live[id]


def plan(of: Scheduler) -> dict[int, tuple[int, int]]:
    """The next step: which part of which sequence."""
    batch = of.schedule()
    chunks = batch.chunks if batch else []
    return {sequence.id: (chunk.start, chunk.stop) for sequence, chunk in zip(of.running, chunks, strict=True)}


def answer(to: Scheduler, token: int = NEXT, **faults: str) -> list[Delta]:
    """Closes the step; `row_1="nan"` makes chunk 1 fail."""
    assert to._steps
    samples: list[list[Sample] | str] = [[Sample(token)] if chunk.sampling else [] for chunk in to._steps[0].chunks]
    for row, error in faults.items():
        samples[int(row.removeprefix("row_"))] = error
    deltas = to.apply(StepResult(samples))
    assert to.check() is None
    return deltas


def step(of: Scheduler) -> dict[int, tuple[int, int]]:
    planned = plan(of)
    if planned:
        answer(of)
    return planned


def finish_all(of: Scheduler) -> list[Delta]:
    deltas = []
    while of.schedule():
        deltas += answer(of)
    return deltas
