"""An engine in this process: the real loop with its scheduler and runner, told step by step what arrives when."""

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from support import printable_card

from model.batch import Batch, Logprobs, StepResult
from model.kv_cache import KVCache
from model.runner import Runner
from server.engine.admission import Admission
from server.engine.block_pool import BlockPool
from server.engine.constraint import Constraints
from server.engine.drafting import DRAFTED_TOKENS
from server.engine.loop import Loop
from server.engine.messages import Cancel, Delta, FromEngine, Step, Submit, ToEngine
from server.engine.scheduler import Limits, Scheduler
from server.engine.streams import Order
from server.engine.wire import frame

BLOCKS = 160
CONSTRAINTS = Constraints(printable_card())


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request was told. Answers are equal if no bit of token or logprob differs and they end alike."""

    tokens: list[int]
    logprobs: list[Logprobs]
    finish: str | None  # None where it was cancelled
    cached_tokens: int = field(compare=False)
    read: list[tuple[Logprobs, int]] = field(default_factory=list)  # of the prompt: each token's, with its rank
    vector: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What must not matter; all else is as `headrace serve` has it."""

    blocks: int = BLOCKS
    step_tokens: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What befalls the requests, by their place; steps are counted, and an idle engine's next step comes at once."""

    arrivals: Sequence[int] = ()  # the step before which each arrives; none given, all arrive at once
    departures: Mapping[int, int] = field(default_factory=dict)  # the step after which a request is cancelled
    before: Callable[[Batch], None] = lambda batch: None  # told of each batch before it is computed; may raise


@dataclass(slots=True)
class Model:
    """A loaded model, and what engines say with it."""

    runner: Runner
    preempted: set[int] = field(default_factory=set)  # the last run's requests that lost their blocks at least once
    _alone: dict[bytes, Answer] = field(default_factory=dict)

    def alone(self, orders: Iterable[Order]) -> list[Answer]:
        """What each is told in an engine of its own: nothing is cached, and its steps carry drafts."""
        return [self._one_alone(order) for order in orders]

    def _one_alone(self, order: Order) -> Answer:
        key = msgspec.msgpack.encode(order)
        if key not in self._alone:
            (self._alone[key],) = self.run([order])
        return self._alone[key]

    def deltas(self, order: Order, setting: Setting) -> list[Delta]:
        """What is told of one step by step."""
        return self._wire([order], setting, Events()).deltas(0)

    def run(
        self, orders: Sequence[Order | Submit], setting: Setting | None = None, events: Events | None = None
    ) -> list[Answer]:
        """What one engine says to all of them. Every block holds NaN until something is stored in it."""
        wire = self._wire(orders, setting or Setting(), events or Events())
        self.preempted = wire.preempted
        return wire.answers()

    def _wire(self, orders: Sequence[Order | Submit], setting: Setting, events: Events) -> "_Wire":
        limits = Limits(64, setting.step_tokens, DRAFTED_TOKENS)
        scheduler = Scheduler(limits, BlockPool(setting.blocks))
        self.runner.cache.poison(list(range(BLOCKS)))
        wire = _Wire(scheduler, [_submit(place, order) for place, order in enumerate(orders)], events)
        wire.go_on()
        Loop(wire, _Watched(self.runner, events.before), scheduler, Admission(CONSTRAINTS), check=True).run()
        return wire


def _submit(place: int, order: Order | Submit) -> Submit:
    if isinstance(order, Submit):
        return msgspec.structs.replace(order, id=place)
    return Submit(
        place,
        order.prompt,
        order.max_tokens,
        order.ending_ids,
        order.sampling,
        adapter=order.adapter,
        salt=order.salt,
        reading=order.reading,
    )


@dataclass(slots=True)
class _Watched:
    runner: Runner
    before: Callable[[Batch], None]

    @property
    def cache(self) -> KVCache:
        return self.runner.cache

    def run(self, batch: Batch) -> StepResult:
        self.before(batch)
        return self.runner.run(batch)


class _Wire:
    """Both ends of the engine's socket: whatever the engine says is answered before it goes on."""

    def __init__(self, scheduler: Scheduler, submits: list[Submit], events: Events) -> None:
        self.preempted: set[int] = set()
        self._scheduler = scheduler
        self._submits = submits
        self._arrivals = events.arrivals or [0] * len(submits)
        self._departures = events.departures
        self._due = sorted(range(len(submits)), key=lambda place: self._arrivals[place])
        self._live: set[int] = set()
        self._deltas: list[list[Delta]] = [[] for _ in submits]
        self._step = 0
        self._far, self._near = socket.socketpair()

    def answers(self) -> list[Answer]:
        self._near.close()
        return [_joined(deltas) for deltas in self._deltas]

    def deltas(self, place: int) -> list[Delta]:
        self._near.close()
        return self._deltas[place]

    def fileno(self) -> int:
        return self._near.fileno()

    def recv(self, size: int) -> bytes:
        return self._near.recv(size)

    def sendall(self, data: bytes) -> None:
        message = msgspec.msgpack.decode(data[4:], type=FromEngine)
        if not isinstance(message, Step):
            return
        for delta in message.deltas:
            self._deltas[delta.id].append(delta)
            if delta.finish is not None:
                self._live.remove(delta.id)
        self.preempted |= {sequence.id for sequence in self._scheduler.waiting if sequence.has_started}
        self._step += 1
        self.go_on()

    def go_on(self) -> None:
        """Sends what is due now; hangs up when nothing is left."""
        for place in [place for place in self._live if self._departures.get(place, self._step + 1) <= self._step]:
            self._live.remove(place)
            self._send(Cancel(place))
        if not self._live and self._due:
            self._step = max(self._step, self._arrivals[self._due[0]])
        while self._due and self._arrivals[self._due[0]] <= self._step:
            self._live.add(self._due[0])
            self._send(self._submits[self._due.pop(0)])
        if not self._live:
            self._far.close()

    def _send(self, message: ToEngine) -> None:
        self._far.sendall(frame(message))


def _joined(deltas: list[Delta]) -> Answer:
    findings = [delta.finding for delta in deltas if delta.finding is not None]
    return Answer(
        tokens=[token for delta in deltas for token in delta.tokens],
        logprobs=[entry for delta in deltas for entry in delta.logprobs or []],
        finish=deltas[-1].finish if deltas else None,
        cached_tokens=deltas[-1].cached_tokens if deltas else 0,
        read=[told for each in findings for told in zip(each.logprobs, each.ranks, strict=True)],
        vector=b"".join(each.vector for each in findings),
    )
