"""A replica in virtual time: the real scheduler and block pool, with a clock in the place of a model."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bench.simulation.traffic import Arrival
from model.batch import Batch, Sample, Sampling, StepResult
from server.bench.record import Record, Usage
from server.engine.block_pool import BlockPool
from server.engine.messages import Submit
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence

CHOSEN, NOTHING = [Sample(0)], list[Sample]()
SAMPLING = Sampling()


@dataclass(slots=True)
class Ended:
    """What a step was the end of."""

    begun: list[int] = field(default_factory=list)  # who had the first token of it
    through: dict[int, Record] = field(default_factory=dict)


class Replica:
    """One step at a time: `begin` says when it will be over, `finish` who has begun and who is through by then.

    Nothing ends a request but its length, and drafts are left out: both would need what the text says.
    """

    def __init__(self, limits: Limits, blocks: int, step_time: Callable[[Batch], float]) -> None:
        self.scheduler = Scheduler(limits, BlockPool(blocks))
        self.step_time = step_time
        self.steps = 0
        self.busy_s = 0.0
        self.records: dict[int, Record] = {}  # of those that are not through
        self._batch: Batch | None = None

    @property
    def is_idle(self) -> bool:
        return self._batch is None

    @property
    def load(self) -> int:
        """Requests that are not through."""
        return len(self.records)

    def submit(self, arrival: Arrival) -> None:
        order = Submit(arrival.id, arrival.prompt, arrival.output_tokens, [], SAMPLING)
        sequence = Sequence.of(order)
        sequence.drafter = None
        usage = Usage(len(arrival.prompt), arrival.output_tokens)
        self.records[arrival.id] = Record(arrival.at, arrival.output_tokens, usage=usage)
        self.scheduler.add(sequence)

    def begin(self, now: float) -> float | None:
        """When the next step ends; None where there is nothing to compute."""
        assert self._batch is None, "a step is under way"
        self._batch = self.scheduler.schedule()
        if self._batch is None:
            return None
        seconds = self.step_time(self._batch)
        self.steps += 1
        self.busy_s += seconds
        return now + seconds

    def finish(self, now: float) -> Ended:
        """Ends the step; the records tell of the first and the last token only, as nothing else is asked of them."""
        assert self._batch is not None, "no step is under way"
        deltas = self.scheduler.apply(
            StepResult([CHOSEN if chunk.sampling else NOTHING for chunk in self._batch.chunks])
        )
        self._batch = None
        ended = Ended()
        for delta in deltas:
            record = self.records[delta.id]
            if not record.chunks:
                record.chunks.append(now)
                ended.begun.append(delta.id)
            if delta.finish:
                record.finish = now
                assert record.usage is not None, "it was told with the request"
                record.usage = replace(record.usage, cached=delta.cached_tokens)
                ended.through[delta.id] = self.records.pop(delta.id)
        return ended
