"""Steps that are told to the device ahead of their turn say what they say one after the other, and the host waits once.

The model and its kernels are real; the device's streams are those of a CPU, or faked ones that fail on whoever looks
too early.
"""

import socket
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from fake_streams import FakeStreams, HostSync
from support import printable_card

from model.batch import Batch, Chunk, Reading, Sampling, StepResult
from model.halving import halves
from model.kernels.streams import Streams
from model.loading import Request, load, open_model
from model.parallel import Ranks
from model.runner import Runner
from server.engine.admission import Admission
from server.engine.block_pool import BlockPool
from server.engine.constraint import Constraints
from server.engine.loop import Loop
from server.engine.messages import Submit
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence

SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.9, seed=1),
    Sampling(temperature=1.2, top_k=20, top_p=0.9, min_p=0.01, seed=2),
    Sampling(temperature=0.8, repetition_penalty=1.2, seed=3),
    Sampling(temperature=0.0, top_logprobs=2),
)
PLAIN = SAMPLINGS[:3]


def make_runner(model: Path) -> Runner:
    request = Request(
        model=str(model),
        device="cpu",
        dtype="float32",
        activations="int16",
        kv_dtype="auto",
        context_length=None,
        kv_memory=0.01,
        max_sequences=8,
        step_tokens=32,
        threads=2,
    )
    opened = open_model(request, lambda *_: None)
    return load(opened, opened.plan(), lambda *_: None)


@pytest.fixture(scope="module")
def runner(tiny_model: Path) -> Runner:
    return make_runner(tiny_model)


@pytest.fixture
def streams(runner: Runner) -> Iterator[FakeStreams]:
    runner.transformer.kernels.streams = fake = FakeStreams()
    yield fake
    runner.transformer.kernels.streams = Streams()


def orders(seed: int, samplings: tuple[Sampling, ...] = SAMPLINGS, *, ends: bool = True) -> list[Submit]:
    draw = Random(seed)
    return [
        Submit(
            id=id,
            prompt=[draw.randrange(250) for _ in range(draw.randint(1, 50))],
            max_tokens=draw.randint(1, 20),
            ending_ids=draw.sample(range(250), k=20) if ends else [],
            sampling=draw.choice(samplings),
        )
        for id in range(12)
    ]


class Counting:
    """A runner's device, and how much of it was under way at most."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.begun = self.most = self.steps = 0  # `begun`: under way
        self.failing: set[int] = set()  # steps that cannot begin
        self.lost: set[int] = set()  # steps of which the result cannot be had
        self.transformer, self.cache = runner.transformer, runner.cache

    def run(self, batch: Batch) -> StepResult:
        return self.runner.run(batch)

    def dispatch(self, batch: Batch) -> None:
        self.steps += 1
        if self.steps in self.failing:
            raise RuntimeError("as the test asked for")
        self.runner.dispatch(batch)
        self.begun += 1
        self.most = max(self.most, self.begun)

    def collect(self) -> StepResult:
        result = self.runner.collect()
        self.begun -= 1
        if self.steps - self.begun in self.lost:
            raise RuntimeError("as the test asked for")
        return result

    def abandon(self) -> None:
        self.runner.abandon()
        self.begun = 0


def outputs(device: Counting, asked: list[Submit], *, overlap: bool, blocks: int = 40) -> dict[int, list[int]]:
    """What each says, all of them through one loop."""
    ours, theirs = socket.socketpair()
    scheduler = Scheduler(Limits(6, 32), BlockPool(blocks))
    with ours, theirs:
        loop = Loop(ours, device, scheduler, Admission(Constraints(printable_card())), check=True, overlap=overlap)
        said: dict[int, list[int]] = {order.id: [] for order in asked}
        loop._report = lambda deltas, seconds: [said[delta.id].extend(delta.tokens) for delta in deltas]  # type: ignore
        loop._say = lambda message: None  # type: ignore
        for number, order in enumerate(asked):
            scheduler.add(Sequence.of(order))
            if number % 3 == 0:
                loop._step()
        while loop._step():
            pass
        assert not loop.violations
        assert scheduler.pool.used == 0
    return said


@pytest.mark.parametrize("seed", range(6))
def test_an_overlapped_loop_says_what_a_plain_one_says(runner: Runner, seed: int) -> None:
    asked = orders(seed, SAMPLINGS if seed % 2 else PLAIN)
    overlapped = Counting(runner)
    assert outputs(overlapped, asked, overlap=True) == outputs(Counting(runner), asked, overlap=False)
    assert overlapped.most == 2


def test_also_where_blocks_are_few(runner: Runner) -> None:
    asked = orders(7, PLAIN, ends=False)
    plenty = outputs(Counting(runner), asked, overlap=False)
    assert outputs(Counting(runner), asked, overlap=True, blocks=9) == plenty


@pytest.mark.parametrize("kind", ["failing", "lost"])
def test_a_step_that_fails_changes_nobodys_tokens(runner: Runner, kind: str) -> None:
    asked = orders(8)
    device = Counting(runner)
    setattr(device, kind, {2, 5, 6, 11, 17})
    assert outputs(device, asked, overlap=True) == outputs(Counting(runner), asked, overlap=False)


def test_the_host_waits_once_a_step_and_looks_at_nothing_else(runner: Runner, streams: FakeStreams) -> None:
    asked = orders(9, (Sampling(temperature=0.0),))
    plain = outputs(Counting(runner), asked, overlap=False)
    before, device = streams.waits, Counting(runner)
    with streams.watched():
        assert outputs(device, asked, overlap=True) == plain
    assert streams.waits - before == device.steps


def only(order: Submit) -> Batch:
    scheduler = Scheduler(Limits(6, 32), BlockPool(8))
    scheduler.add(Sequence.of(order))
    batch = scheduler.schedule()
    assert batch is not None
    return batch


def test_whoever_looks_too_early_is_found(runner: Runner, streams: FakeStreams) -> None:
    """The fake can fail: on a choice that reads its row on the host, and on a buffer that is written to again."""
    penalised = Submit(1, [3, 4, 5], 3, [], Sampling(temperature=0.0, top_logprobs=2))
    with streams.watched(), pytest.raises(HostSync):
        runner.run(only(penalised))
    host = torch.zeros(3)
    streams.upload(host, torch.device("cpu"))
    host[1] = 1.0
    with pytest.raises(AssertionError, match="before it was copied"):
        streams.settle()
    streams._uploads.clear()


def test_results_come_in_the_order_of_their_steps(runner: Runner) -> None:
    first, second = (only(Submit(1, prompt, 3, [], PLAIN[0])) for prompt in ([3, 4, 5], [9, 8]))
    alone = [runner.run(batch) for batch in (first, second)]
    runner.dispatch(first)
    runner.dispatch(second)
    assert [runner.collect(), runner.collect()] == alone


class Short:
    """A device that has not the memory for so many rows."""

    def __init__(self, runner: Runner, rows: int) -> None:
        self.runner, self.rows = runner, rows
        self.sizes: list[int] = []
        self.hidden = runner._hidden
        self.allocated: Callable[[], torch.Tensor | None] = lambda: None  # by the step that failed

    def __call__(self, inputs: object, **how: bool) -> torch.Tensor:
        self.sizes.append(len(inputs.ids))  # type: ignore[attr-defined]
        assert self.allocated() is None, "the next try has to do without that memory"
        if self.sizes[-1] > self.rows:
            allocated = torch.zeros(1)
            self.allocated = weakref.ref(allocated)
            raise torch.OutOfMemoryError("as the test asked for")
        return self.hidden(inputs, **how)  # type: ignore[arg-type]


def test_a_step_that_takes_too_much_memory_is_computed_in_halves(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [(21, SAMPLINGS[1]), (1, PLAIN[0]), (7, SAMPLINGS[4]), (1, PLAIN[2])]
    chunks = [only(Submit(1, list(range(length)), 3, [], how)).chunks[0] for length, how in asked]
    batch = Batch([replace(one, blocks=[2 * place, 2 * place + 1]) for place, one in enumerate(chunks)])
    whole = runner.run(batch)
    short = Short(runner, 15)
    monkeypatch.setattr(runner, "_hidden", short)
    assert runner.run(batch) == whole
    assert short.sizes == [30, 15, 15]
    runner.dispatch(batch)
    assert runner.collect() == whole
    short.rows = 14
    with pytest.raises(torch.OutOfMemoryError):
        runner.run(batch)
    assert short.sizes[6:] == [30, 15], "it is tried once more, and no oftener"
    monkeypatch.setattr(runner.transformer, "ranks", Ranks(0, 2))
    short.allocated = lambda: None
    with pytest.raises(torch.OutOfMemoryError):
        runner.run(batch)
    assert short.sizes[8:] == [30], "other ranks compute the whole"


def test_halves_cut_what_can_be_cut() -> None:
    long = Chunk(list(range(9)), 0, 9, [0], 9, Sampling())
    first, second = halves(Batch([long]))
    assert [(c.start, c.stop, c.sampling) for c in first.chunks] == [(0, 4, None)]
    assert [(c.start, c.stop, c.sampling) for c in second.chunks] == [(4, 9, Sampling())]
    assert halves(Batch([replace(long, reading=Reading())])) == (Batch([]), Batch([replace(long, reading=Reading())]))
    one = replace(long, start=8)
    assert halves(Batch([one, one, one])) == (Batch([one]), Batch([one, one]))
