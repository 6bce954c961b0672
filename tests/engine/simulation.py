"""Whether random demands on scheduler and pool ever break an invariant, or give a sequence any but its own tokens."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from random import Random

from fake_model import BLOCK_SIZE, VOCABULARY, FakeModel, Violation, foresee, golden, require, tell, told

from model.batch import Batch, Reading, Sampling, StepResult
from server.engine.block_pool import BlockPool
from server.engine.drafting import Drafter
from server.engine.messages import Delta, Submit
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence

__all__ = ["Violation", "Watched", "World"]

DRAFTED = (0, 6, 12)
SEEDS = tuple(Sampling(seed=seed) for seed in range(3))


class Guesser(Drafter):
    """Knows what comes, beyond any end, and errs now and then: as the model's words hardly repeat, lookup would."""

    def __init__(self, sequence: Sequence, foreseen: list[int], random: Random) -> None:
        super().__init__(sequence.tokens, sequence.prompt_length)
        self.sequence, self.foreseen, self.random = sequence, foreseen, random

    def propose(self, most: int, price: float) -> tuple[int, ...]:
        start = self.sequence.output_length
        truth = self.foreseen[start : start + self.random.randint(0, most)]
        return tuple(token if self.random.random() < 0.8 else self.random.randrange(VOCABULARY) for token in truth)


class Watched(Scheduler):
    """Reports each preemption and each end of a stay as it happens, in the middle of a step."""

    watch: Callable[[str], None]

    def _preempt(self, sequence: Sequence) -> None:
        super()._preempt(sequence)
        self.watch("preempt")

    def _leave(self, sequence: Sequence) -> None:
        super()._leave(sequence)
        self.watch("finish" if sequence.finish else "leave")


class World:
    """One pool, one scheduler, one fake model, and random demands on them.

    An operation is a submit, a step (schedule, compute, apply), a cancel of a live sequence, a preemption, or a
    finish (a sequence that chose its last token). After each, after each sequence that leaves otherwise, and between
    the halves of a step, every invariant is checked in full.
    """

    def __init__(
        self,
        seed: int,
        scheduler: type[Watched] = Watched,
        pool: type[BlockPool] = BlockPool,
        *,
        reads: bool = False,
        overlaps: bool = False,
    ) -> None:
        """With `reads`, two prompts in three tell of themselves, for which the prefix cache serves them less.

        With `overlaps`, each step that can is computed before the tokens of the one before it are known.
        """
        self.seed = seed
        self.reads = reads
        self.random = random = Random(seed)
        self.reader = Random(-1 - seed)
        self.overlaps = overlaps
        self.ahead: StepResult | None = None  # nobody has looked
        self.overlapped = 0  # steps
        self.blocks = random.randint(8, 24)
        self.limits = Limits(
            random.randint(2, 8),
            step_tokens=random.randint(4, 24),
            drafted_tokens=random.choice(DRAFTED),
            context_rate=random.choice([math.inf, 5.0, 40.0]),
        )
        self.pool = pool(self.blocks, BLOCK_SIZE, prefix_cache=random.random() < 0.9)
        self.scheduler = scheduler(self.limits, self.pool)
        self.scheduler.watch = self.count
        self.model = FakeModel(self.blocks, random)
        self.counts = dict.fromkeys(["submit", "step", "cancel", "preempt", "finish", "leave"], 0)
        self.orders: dict[int, Submit] = {}  # live ones, oldest first
        self.foreseen: dict[int, list[int]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.told: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}
        self.deadlines: dict[int, int] = {}
        self.last_started: dict[int, int] = {}  # by priority
        self.urgency = Random(seed)
        self.priorities = (-1, 0, 7) if seed % 2 else (0,)
        self.texts = [self.text(24) for _ in range(4)]  # prompts share beginnings of these

    @property
    def operations(self) -> int:
        return sum(self.counts.values()) - self.counts["leave"]

    def count(self, operation: str) -> None:
        self.counts[operation] += 1
        self.check()

    def check(self) -> None:
        scheduler = self.scheduler
        violation = scheduler.check()
        require(violation is None, str(violation))
        for priority in self.priorities:
            live = chain(scheduler.running, scheduler.waiting)
            ids = [sequence.id for sequence in live if sequence.priority == priority]
            require(ids == sorted(ids), f"{ids} are not in order of arrival")

    def run(self, operations: int) -> None:
        try:
            while self.operations < operations:
                self.move()
            while self.orders or self.ahead:
                self.step()
            require(self.scheduler.schedule() is None, "there is something to do for nobody")
            require(self.pool.used == 0, "blocks leaked")
        except Exception as error:
            error.add_note(f"HEADRACE_SIMULATION_SEED={self.seed}, after {self.counts}")
            raise

    def move(self) -> None:
        draw = self.random.random()
        if draw < 0.3 and len(self.orders) < 12:
            self.submit()
        elif draw < 0.33:
            self.cancel()
        else:
            self.step()

    def text(self, length: int) -> list[int]:
        return self.random.choices(range(2), k=length)

    def reading(self, length: int) -> Reading | None:
        reading = self.reader.choice([None, Reading(top_logprobs=0), Reading()]) if self.reads else None
        return reading and replace(reading, start=self.reader.choice([0, self.reader.randrange(length), length - 1]))

    def submit(self) -> None:
        random = self.random
        room = self.blocks * BLOCK_SIZE + 1  # the last token is never computed
        text = random.choice(self.texts)
        text = text[random.choice([0, 0, 0, BLOCK_SIZE]) :]
        prompt = (text[: random.randint(0, len(text))] + self.text(random.randint(0, 5)))[: room - 1] or [0]
        reading = self.reading(len(prompt))
        order = Submit(
            id=self.counts["submit"],
            prompt=prompt,
            reading=reading,
            max_tokens=random.randint(1, min(room - len(prompt), 24)) - (reading is not None),
            ending_ids=random.sample(range(5 * VOCABULARY), k=random.randint(0, 2)),
            sampling=random.choice(SEEDS),
            priority=self.urgency.choice(self.priorities),
        )
        self.orders[order.id] = order
        self.outputs[order.id] = []
        self.told[order.id] = []
        self.foreseen[order.id] = foresee(order)
        # Each step moves the oldest: at the latest, it goes when all before it and itself have gone token by token.
        # One step more is lost where drafts failed.
        # A step that was ahead of ends that nobody foresaw may be all for nothing.
        patience = sum(len(live.prompt) + live.max_tokens + 1 for live in self.orders.values()) * (1 + self.overlaps)
        self.deadlines[order.id] = self.counts["step"] + patience
        if len(self.priorities) > 1:
            self.be_patient(order, patience)
        sequence = Sequence.of(order)
        if random.random() < 0.8:
            sequence.drafter = Guesser(sequence, self.foreseen[order.id], random)
        self.scheduler.add(sequence)
        self.count("submit")

    def be_patient(self, order: Submit, patience: int) -> None:
        """Who is less urgent than a newcomer begins to wait anew; and the newcomer waits for those who run.

        Whoever is the most urgent runs to its end within its own work, or waits while others run to theirs; what is
        computed of those meanwhile may be lost to a preemption, once.
        """
        for id, live in self.orders.items():
            if live.priority > order.priority or id == order.id:
                self.deadlines[id] = self.counts["step"] + 2 * patience

    def cancel(self) -> None:
        if not self.orders:
            self.scheduler.cancel(self.counts["submit"])  # ignored: never seen
            return
        id = self.random.choice([*self.orders])
        self.scheduler.cancel(id)
        self.scheduler.cancel(id)  # ignored: gone, or about to go
        self.close(id)
        self.count("cancel")

    def step(self) -> None:
        result = self.ahead or self.begin()
        if result is None:
            require(not self.orders, "nothing is to do, yet sequences are live")
            return
        self.ahead = self.begin_ahead() if self.overlaps else None
        if self.random.random() < 0.02:
            self.cancel()
        for delta in self.scheduler.apply(result):
            self.receive(delta)
        self.count("step")

    def begin(self) -> StepResult | None:
        undisturbed = [s.id for s in sorted(self.scheduler.running, key=lambda s: s.priority)[:1]]
        batch = self.scheduler.schedule()
        if batch is None:
            return None
        self.check()
        drafts = sum(len(chunk.drafts) for chunk in batch.chunks)
        require(not drafts or sum(map(len, batch.chunks)) <= self.limits.drafted_tokens, "a big step has drafts")
        for sequence, chunk in zip(self.scheduler.running, batch.chunks, strict=True):
            require(chunk.end <= sequence.reach, "a draft lies beyond what the sequence can reach")
            if chunk.drafts and self.random.random() < 0.05:  # somebody else says what here is only guessed
                self.texts[self.random.randrange(4)] = [*chunk.tokens, *chunk.drafts]
        for id in self.scheduler.started:
            priority = self.orders[id].priority
            require(id > self.last_started.get(priority, -1), "a later arrival started first")
            is_first = all(waiting.priority >= priority for waiting in self.scheduler.waiting)
            require(is_first, "a less urgent one started first")
            self.last_started[priority] = id
        moving = {sequence.id for sequence in self.scheduler.running}
        require(moving.issuperset(undisturbed), "the most urgent that ran does not move")
        require(len(self.priorities) > 1 or next(iter(self.orders)) in moving, "the oldest does not move")
        return self.compute(batch)

    def begin_ahead(self) -> StepResult | None:
        """Now and then it is scheduled and then cannot begin."""
        before = [sequence.id for sequence in self.scheduler.running]
        batch = self.scheduler.ahead()
        if batch is None:
            return None
        self.check()
        require(before == [sequence.id for sequence in self.scheduler.running], "a step ahead starts or stops somebody")
        require(not any(chunk.drafts for chunk in batch.chunks), "a step ahead has drafts")
        if self.random.random() < 0.1:
            self.scheduler.retract()
            return None
        self.overlapped += 1
        return self.compute(batch)

    def compute(self, batch: Batch) -> StepResult:
        require(sum(map(len, batch.chunks)) <= self.limits.step_tokens, "the step is too big")
        return self.model.run(batch)

    def receive(self, delta: Delta) -> None:
        require(delta.id in self.orders, f"sequence {delta.id} speaks after its end")
        require(self.cached.setdefault(delta.id, delta.cached_tokens) == delta.cached_tokens, "the hit changed")
        self.outputs[delta.id] += delta.tokens
        if delta.finding is not None:
            self.told[delta.id] += told(delta.finding)
        if delta.finish:
            output, finish = self.outputs[delta.id], delta.finish
            require(finish == "error" or (output, finish) == self.golden(delta.id), "the output is wrong")
            whole = tell(self.orders[delta.id])
            require(finish == "error" or self.told[delta.id] == whole, "not all was read")
            self.texts[self.random.randrange(4)] = self.orders[delta.id].prompt + output  # the next turn of the talk
            self.close(delta.id)

    def golden(self, id: int) -> tuple[list[int], str]:
        return golden(self.orders[id], self.foreseen[id])

    def close(self, id: int) -> None:
        output, said = self.outputs.pop(id), self.told.pop(id)
        require(said == tell(self.orders[id])[: len(said)], "what was read is wrong")
        self.cached.pop(id, None)
        require(output == self.golden(id)[0][: len(output)], "the output is wrong")
        del self.orders[id], self.foreseen[id]
        require(self.deadlines.pop(id) >= self.counts["step"], f"sequence {id} took too long")
