"""The replicas of an application as one process sees them: how they are doing, and who gets which request."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from server.scale_out.engine import Census
from server.scale_out.messages import Beginning, Report
from server.scale_out.routing import PrefixRouting, Ranking, Why, prefix_keys

_beginning = msgspec.msgpack.Decoder(Beginning)


@dataclass(frozen=True, slots=True)
class Member:
    """A replica that takes requests."""

    queued: int  # requests that it has, of every process, as far as is known
    report: Report | None  # the last, if there is one

    @property
    def is_up(self) -> bool:
        return self.report is None or self.report.is_up


@dataclass(frozen=True, slots=True)
class Offer:
    """A request that has been ranked and not been sent yet: until then it weighs on the first of the ranking."""

    keys: list[int]
    ranking: Ranking
    is_wanted: Callable[[], bool]  # the caller still waits


class Fleet:
    """Belongs to the thread that routes; `census` may be asked in any."""

    def __init__(self) -> None:
        self._members: Mapping[str, Member] = {}
        self._routing = PrefixRouting()
        self._offers: dict[str, Offer] = {}  # by request
        self._sent: set[str] = set()  # requests that are with a replica
        self._in_hand: Counter[str] = Counter()  # requests, by replica
        self._routed: Counter[tuple[str, Why]] = Counter()

    def see(self, members: Mapping[str, Member]) -> None:
        """These are all."""
        self._members = members
        self._routing.keep(set(members))

    def rank(self, request: str, submit: bytes, is_wanted: Callable[[], bool] = lambda: True) -> list[str]:
        """Those who could take an encoded Submit, the best first; one whose engine is away only if all are."""
        begun = _beginning.decode(submit)
        keys = prefix_keys(begun.prompt, (begun.adapter, begun.salt))
        self._offers = {name: each for name, each in self._offers.items() if name != request and each.is_wanted()}
        ranking = self._routing.rank(keys, self._loads())
        self._offers[request] = Offer(keys, ranking, is_wanted)
        self._routing.sent(keys, ranking.replicas[0])  # for those that are ranked before this one is sent
        return ranking.replicas

    def _loads(self) -> dict[str, int]:
        welcoming = {name: each for name, each in self._members.items() if each.is_up} or self._members
        offered = Counter(offer.ranking.replicas[0] for offer in self._offers.values())
        return {name: max(each.queued, self._in_hand[name]) + offered[name] for name, each in welcoming.items()}

    def routed(self, request: str, replica: str) -> None:
        """It has been sent to this one. What was not ranked is of no interest."""
        offer = self._offers.pop(request, None)
        if offer is None:
            return
        first = offer.ranking.replicas[0]
        if replica != first:
            self._routing.sent(offer.keys, replica)
        self._sent.add(request)
        self._in_hand[replica] += 1
        self._routed[replica, offer.ranking.why if replica == first else "load"] += 1

    def completed(self, request: str, replica: str) -> None:
        """In whichever way."""
        if request in self._sent:
            self._sent.remove(request)
            self._in_hand[replica] -= 1

    def census(self) -> Census:
        members = self._members
        stats = {name: each.report.stats for name, each in members.items() if each.report and each.report.stats}
        return Census(stats, len(members), self._routed.copy())


@cache
def fleet_of(application: str) -> Fleet:
    """This process' own. Ray Serve makes routers itself, from a copy of their class: this is how they are found."""
    return Fleet()


def read_report(told: Mapping[str, Any]) -> Report | None:
    return msgspec.convert(told, Report) if told else None
