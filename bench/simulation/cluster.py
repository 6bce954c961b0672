"""Many replicas behind a router, as events in virtual time."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

from bench.simulation.replica import Replica
from bench.simulation.traffic import Arrival
from server.bench.record import Record


class Router(Protocol):
    """Chooses a replica by what it has sent where, and what is through."""

    def send(self, arrival: Arrival) -> int:
        """The place of the replica that is to answer."""

    def begun(self, arrival_id: int) -> None:
        """That one has its first token."""

    def through(self, arrival_id: int) -> None:
        """That one has its answer."""


@dataclass(slots=True)
class Outcome:
    """What happened to all that arrived, in the order in which they did."""

    records: list[Record]
    places: list[int]  # of the replica that answered
    steps: int
    preemptions: int
    busy: float  # share of the time until the last arrival in which a replica computes, the mean of all


def simulate(replicas: Sequence[Replica], arrivals: Iterable[Arrival], router: Router) -> Outcome:
    """Until all have their answer. Telling a router and a replica takes no time."""
    records: dict[int, Record] = {}
    places: dict[int, int] = {}
    steps: list[tuple[float, int]] = []  # when one ends, and whose it is
    now = 0.0

    def finish_steps(until: float) -> None:
        while steps and steps[0][0] <= until:
            end, place = heappop(steps)
            ended = replicas[place].finish(end)
            for id in ended.begun:
                router.begun(id)
            for id, record in ended.through.items():
                records[id] = record
                router.through(id)
            begin(place, end)

    def begin(place: int, at: float) -> None:
        end = replicas[place].begin(at)
        if end is not None:
            heappush(steps, (end, place))

    for arrival in arrivals:
        finish_steps(arrival.at)
        places[arrival.id] = place = router.send(arrival)
        replicas[place].submit(arrival)
        if replicas[place].is_idle:
            begin(place, arrival.at)
        now = arrival.at
    computed_s = sum(replica.busy_s for replica in replicas)
    finish_steps(math.inf)
    return Outcome(
        [records[id] for id in places],
        [*places.values()],
        sum(replica.steps for replica in replicas),
        sum(replica.scheduler.preemptions for replica in replicas),
        computed_s / (len(replicas) * now) if now else 0.0,
    )
