"""The replicas of an application as one process sees them: how they are doing, and who gets which request."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import msgspec

from server.scale_out.engine import Census
from server.scale_out.loads import Load, Loads
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

    sequence: int
    keys: list[int]
    ranking: Ranking
    unread_tokens: int  # of its prompt, by the first
    is_wanted: Callable[[], bool]  # the caller still waits
    over_at: str | None = None  # this replica had no room for it, or is through with it already

    @property
    def first(self) -> str:
        return self.ranking.replicas[0]


class Fleet:
    """Belongs to the thread that routes; `census` and `begun` may be called in any."""

    def __init__(self) -> None:
        self._members: Mapping[str, Member] = {}
        self._routing = PrefixRouting()
        self._offers: dict[str, Offer] = {}  # by request
        self._sequences: dict[str, int] = {}  # by request that is with a replica
        self._begun: deque[int] = deque()  # sequences that `begun` has told of since requests were last ranked
        self._in_hand = Loads()
        self._routed: Counter[tuple[str, Why]] = Counter()

    def see(self, members: Mapping[str, Member]) -> None:
        """These are all."""
        self._members = members
        self._routing.keep(set(members))
        self._in_hand.keep(set(members))

    def rank(self, request: str, submit: bytes, is_wanted: Callable[[], bool] = lambda: True) -> list[str]:
        """Those who could take an encoded Submit, the best first; one whose engine is away only if all are."""
        beginning = _beginning.decode(submit)
        keys = prefix_keys(beginning.prompt, (beginning.adapter, beginning.salt))
        before = self._offers.pop(request, None)
        self._offers = {name: each for name, each in self._offers.items() if each.is_wanted()}
        ranking = self._routing.rank(keys, self._loads())
        first = ranking.replicas[0]
        if before is not None and before.first == first:  # nobody took it yet, and it counts as sent already
            unread_tokens = before.unread_tokens
        else:
            unread_tokens = self._routing.sent(keys, first)  # for those that are ranked before this one is sent
        self._offers[request] = Offer(beginning.id, keys, ranking, unread_tokens, is_wanted)
        return ranking.replicas

    def _loads(self) -> dict[str, Load]:
        """What others have sent is taken to be like what we have."""
        self._hear_of_begun()
        welcoming = {name: each for name, each in self._members.items() if each.is_up} or self._members
        offered: defaultdict[str, Load] = defaultdict(Load)
        for offer in self._offers.values():
            offered[offer.first] += Load(1, offer.unread_tokens)
        ours = {name: self._in_hand.of(name) for name in welcoming}
        return {
            name: ours[name].grown(max(each.queued, ours[name].requests)) + offered[name]
            for name, each in welcoming.items()
        }

    def _hear_of_begun(self) -> None:
        begun = {self._begun.popleft() for _ in range(len(self._begun))}
        for request, sequence in self._sequences.items():
            if sequence in begun:
                self._in_hand.begun(request)

    def routed(self, request: str, replica: str) -> None:
        """It has been sent to this one. What was not ranked is of no interest."""
        offer = self._offers.pop(request, None)
        if offer is None:
            return
        unread_tokens = offer.unread_tokens if replica == offer.first else self._routing.sent(offer.keys, replica)
        if replica != offer.over_at:
            self._sequences[request] = offer.sequence
            self._in_hand.sent(request, replica, unread_tokens)
        self._routed[replica, offer.ranking.why if replica == offer.first else "load"] += 1

    def begun(self, sequence: int) -> None:
        """It has its first token."""
        self._begun.append(sequence)

    def completed(self, request: str, replica: str) -> None:
        """In whichever way. Of a short one, Serve may tell this before it tells where it was routed."""
        if request in self._offers:
            self._offers[request] = replace(self._offers[request], over_at=replica)
        elif self._in_hand.replica_of(request) == replica:
            self._in_hand.through(request)
            del self._sequences[request]

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
