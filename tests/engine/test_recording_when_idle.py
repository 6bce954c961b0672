"""The device records while nobody waits: never beside a step, orders come before, and at its end that is told."""

import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from support import printable_card

from model.batch import Batch, Sample, Sampling, StepResult
from server.config import ServeOptions
from server.engine.admission import Admission
from server.engine.block_pool import BlockPool
from server.engine.client import EngineClient
from server.engine.constraint import Constraints
from server.engine.loop import Loop
from server.engine.messages import FromEngine, Ping, Recorded, Step, Submit, Tick, ToEngine
from server.engine.scheduler import Limits, Scheduler
from server.engine.wire import Inbox, frame

TOKENS = 3


class Recorder:
    """A device that computes nothing, has so many sizes to record, and says what it was told to do."""

    def __init__(self, sizes: int, between: Callable[[int], None] = lambda recorded: None) -> None:
        self.left = self.sizes = sizes
        self.between = between  # called with how many are recorded
        self.did: list[str] = []
        self.under_way = 0
        self.cache = SimpleNamespace(poison=lambda blocks: None)

    def record_more(self) -> bool:
        assert not self.under_way
        self.did.append("record" if self.left else "nothing")
        if not self.left:
            return False
        self.left -= 1
        self.between(self.sizes - self.left)
        return True

    def dispatch(self, batch: Batch) -> None:
        self.under_way += 1

    def collect(self) -> StepResult:
        self.under_way -= 1
        self.did.append("step")
        return StepResult([[Sample(1)]])

    def run(self, batch: Batch) -> StepResult:
        self.dispatch(batch)
        return self.collect()


def served(recorder: Recorder, ours: socket.socket, overlap: bool) -> None:
    scheduler = Scheduler(Limits(4, 32), BlockPool(8))
    Loop(ours, recorder, scheduler, Admission(Constraints(printable_card())), check=True, overlap=overlap).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("overlap", [False, True])
def test_an_order_is_computed_before_the_next_size_is_recorded(overlap: bool) -> None:
    ours, theirs = socket.socketpair()

    def between(recorded: int) -> None:
        if recorded == 2:
            order: ToEngine = Submit(0, [1, 2], TOKENS, [], Sampling(temperature=0.0))
            theirs.sendall(frame(order))
        if recorded == 5:
            theirs.shutdown(socket.SHUT_WR)

    recorder = Recorder(9, between)
    with ours, theirs:
        served(recorder, ours, overlap)
        said = Inbox[FromEngine](theirs, FromEngine).take(wait=False)
    assert recorder.did == ["record"] * 2 + ["step"] * TOKENS + ["record"] * 3
    assert sum(isinstance(message, Step) for message in said) == TOKENS
    assert not any(isinstance(message, Recorded) for message in said), "it was not done"


def test_when_there_is_no_more_to_record_that_is_told_once() -> None:
    ours, theirs = socket.socketpair()
    recorder = Recorder(3)
    with ours, theirs:
        engine = threading.Thread(target=served, args=[recorder, ours, False])
        engine.start()
        inbox = Inbox[FromEngine](theirs, FromEngine)
        (recorded,) = inbox.take(wait=True)
        assert isinstance(recorded, Recorded)
        assert recorded.sizes == 3
        for _ in range(2):
            theirs.sendall(frame(Ping()))
            assert inbox.take(wait=True) == [Tick()]
        theirs.shutdown(socket.SHUT_WR)
        engine.join()
    assert recorder.did[:3] == ["record"] * 3
    assert set(recorder.did[3:]) == {"nothing"}


def test_it_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        EngineClient(ServeOptions(), max_queue=1)._hear(Recorded(24, 3.14159))
    (line,) = caplog.records
    assert (line.message, line.values) == ("steps recorded", {"sizes": 24, "seconds": 3.1})  # type: ignore[attr-defined]
