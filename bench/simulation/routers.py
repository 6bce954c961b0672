"""The routers that are compared: the one that replicas are served with, variants of it, and what knows nothing."""

from collections.abc import Callable, Sequence
from functools import partial

from bench.simulation.cluster import Router
from bench.simulation.traffic import Arrival
from server.scale_out.routing import CROWD_TOKENS, PrefixRouting, prefix_keys


class RankingRouter:
    """Asks the routing of `server/scale_out`, with what it would know."""

    def __init__(self, replicas: int, routing: PrefixRouting, keys_of: Callable[[Sequence[int]], list[int]]) -> None:
        self._routing = routing
        self._keys_of = keys_of
        self._loads = {str(place): 0 for place in range(replicas)}
        self._at: dict[int, str] = {}

    def send(self, arrival: Arrival) -> int:
        keys = self._keys_of(arrival.prompt)
        replica = self._routing.rank(keys, self._loads).replicas[0]
        self._routing.sent(keys, replica)
        self._loads[replica] += 1
        self._at[arrival.id] = replica
        return int(replica)

    def through(self, arrival_id: int) -> None:
        self._loads[self._at.pop(arrival_id)] -= 1


class InTurn:
    """Knows nothing."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._sent = 0

    def send(self, arrival: Arrival) -> int:
        self._sent += 1
        return (self._sent - 1) % self._replicas

    def through(self, arrival_id: int) -> None:
        pass


def _affinity(replicas: int, blocks: int, crowd_tokens: int = CROWD_TOKENS) -> Router:
    return RankingRouter(replicas, PrefixRouting(crowd_tokens=crowd_tokens, remembered_blocks=blocks), prefix_keys)


def _least_load(replicas: int, blocks: int) -> Router:
    """No prompt has keys."""
    return RankingRouter(replicas, PrefixRouting(remembered_blocks=blocks), lambda _: [])


def _in_turn(replicas: int, _: int) -> Router:
    return InTurn(replicas)


AFFINITIES = {
    f"prefix affinity, {crowd_tokens}": partial(_affinity, crowd_tokens=crowd_tokens)
    for crowd_tokens in (16, 64, 256, 1024, 4096)
}
# By name, made for so many replicas of so many KV blocks.
ROUTERS: dict[str, Callable[[int, int], Router]] = {
    "prefix affinity": _affinity,
    "least load": _least_load,
    "in turn": _in_turn,
    **AFFINITIES,
}
