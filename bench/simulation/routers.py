"""The routers that are compared: the one that replicas are served with, variants of it, and what knows nothing."""

from collections.abc import Callable, Sequence
from functools import partial

from bench.simulation.cluster import Router
from bench.simulation.traffic import Arrival
from server.scale_out.loads import Load, Loads
from server.scale_out.routing import CROWD_TOKENS, PrefixRouting, prefix_keys


class RankingRouter:
    """Asks the routing of `server/scale_out`, with what it would know."""

    def __init__(self, replicas: int, routing: PrefixRouting) -> None:
        self._routing = routing
        self._names = [str(place) for place in range(replicas)]
        self._loads = Loads()

    def send(self, arrival: Arrival) -> int:
        keys = self._keys(arrival.prompt)
        replica = self._routing.rank(keys, {name: self._load(name) for name in self._names}).replicas[0]
        self._loads.sent(arrival.id, replica, self._routing.sent(keys, replica))
        return int(replica)

    def begun(self, arrival_id: int) -> None:
        self._loads.begun(arrival_id)

    def through(self, arrival_id: int) -> None:
        self._loads.through(arrival_id)

    def _keys(self, prompt: Sequence[int]) -> list[int]:
        return prefix_keys(prompt)

    def _load(self, replica: str) -> Load:
        return self._loads.of(replica)


class CountingRouter(RankingRouter):
    """Weighs the requests that a replica has in hand, whatever is unread of their prompts."""

    def _load(self, replica: str) -> Load:
        return Load(super()._load(replica).requests)


class LeastLoad(RankingRouter):
    """No prompt has keys."""

    def _keys(self, _: Sequence[int]) -> list[int]:
        return []


class InTurn:
    """Knows nothing."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._sent = 0

    def send(self, arrival: Arrival) -> int:
        self._sent += 1
        return (self._sent - 1) % self._replicas

    def begun(self, arrival_id: int) -> None:
        pass

    def through(self, arrival_id: int) -> None:
        pass


def _ranking(router: type[RankingRouter], replicas: int, blocks: int, crowd_tokens: int = CROWD_TOKENS) -> Router:
    return router(replicas, PrefixRouting(crowd_tokens=crowd_tokens, remembered_blocks=blocks))


def _in_turn(replicas: int, _: int) -> Router:
    return InTurn(replicas)


WEIGHTS = {
    f"{name}, {crowd_tokens}": partial(_ranking, router, crowd_tokens=crowd_tokens)
    for name, router in (("prefix affinity", RankingRouter), ("counting requests", CountingRouter))
    for crowd_tokens in (32, 128, 512, 1024, 2048)
}
# By name, made for so many replicas of so many KV blocks.
ROUTERS: dict[str, Callable[[int, int], Router]] = {
    "prefix affinity": partial(_ranking, RankingRouter),
    "least load": partial(_ranking, LeastLoad),
    "in turn": _in_turn,
    **WEIGHTS,
}
