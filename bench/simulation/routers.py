"""The routers that are compared: the one that replicas are served with, the same without prefixes, and none."""

from collections.abc import Callable, Sequence

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


def prefix_affinity(replicas: int, blocks: int, crowd_tokens: int = CROWD_TOKENS) -> RankingRouter:
    routing = PrefixRouting(crowd_tokens=crowd_tokens, remembered_blocks=blocks)
    return RankingRouter(replicas, routing, prefix_keys)


def least_load(replicas: int, blocks: int, crowd_tokens: int = CROWD_TOKENS) -> RankingRouter:
    """No prompt has keys."""
    return RankingRouter(replicas, PrefixRouting(crowd_tokens=crowd_tokens, remembered_blocks=blocks), lambda _: [])


def in_turn(replicas: int, blocks: int, crowd_tokens: int = CROWD_TOKENS) -> InTurn:
    return InTurn(replicas)


ROUTERS = {"prefix affinity": prefix_affinity, "least load": least_load, "in turn": in_turn}
