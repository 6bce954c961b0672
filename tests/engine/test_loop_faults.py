"""Steps that fail: whose fault it is, and when it is nobody's."""

import socket
from collections.abc import Iterator

import pytest
from driving import NEXT, add, scheduler
from support import printable_card

from model.batch import Batch, Sample, StepResult
from server.engine.admission import Admission
from server.engine.constraint import Constraints
from server.engine.loop import Loop


class Failing:
    """A runner that fails on batches with any of these prompts' first tokens, or on all."""

    def __init__(self) -> None:
        self.culprits: set[int] = set()
        self.is_broken = False
        self.batches: list[int] = []

    def run(self, batch: Batch) -> StepResult:
        self.batches.append(len(batch.chunks))
        if self.is_broken or any(chunk.tokens[0] in self.culprits for chunk in batch.chunks):
            raise RuntimeError("as the test asked for")
        return StepResult([[Sample(NEXT)] if chunk.sampling else [] for chunk in batch.chunks])


@pytest.fixture
def loop() -> Iterator[Loop]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop = Loop(ours, Failing(), scheduler(), Admission(Constraints(printable_card())), check=False)
        for id in range(1, 6):
            add(loop.scheduler, id, 3)
        yield loop


def live(loop: Loop) -> list[int]:
    return sorted(loop.scheduler._live)


def test_a_step_that_fails_is_computed_again_chunk_by_chunk_and_the_culprit_alone_fails(loop: Loop) -> None:
    loop.runner.culprits = {3000}
    assert loop._step()
    assert loop.runner.batches == [5, 1, 1, 1, 1, 1]
    assert live(loop) == [1, 2, 4, 5]


def test_culprits_that_others_stand_between_fail_each_for_itself(loop: Loop) -> None:
    loop.runner.culprits = {1000, 3000, 5000}
    assert loop._step()
    assert live(loop) == [2, 4]


def test_two_failures_in_a_row_are_the_devices_and_end_the_engine(loop: Loop) -> None:
    loop.runner.is_broken = True
    with pytest.raises(RuntimeError):
        loop._step()
    assert loop.runner.batches == [5, 1, 1]
    assert live(loop) == [1, 2, 3, 4, 5], "nobody is failed for it"


def test_a_lone_request_is_failed_once_and_the_next_failure_ends_the_engine(loop: Loop) -> None:
    for id in (1, 2, 3, 4):
        loop.scheduler.cancel(id)
    loop.runner.is_broken = True
    assert loop._step()
    assert live(loop) == []
    add(loop.scheduler, 6, 3)
    with pytest.raises(RuntimeError):
        loop._step()
