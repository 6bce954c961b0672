"""The routers that are compared: the one that replicas are served with, the same without prefixes, and none."""

from collections.abc import Callable, Sequence

from bench.simulation.traffic import Arrival
from server.scale_out.routing import PrefixRouting, prefix_keys


class RankingRouter:
    """Asks the routing of `server/scale_out`, with what it would know."""

    def __init__(self, replicas: int, blocks: int, keys_of: Callable[[Sequence[int]], list[int]]) -> None:
        self._routing = PrefixRouting(remembered_blocks=blocks)
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


def prefix_affinity(replicas: int, blocks: int) -> RankingRouter:
    return RankingRouter(replicas, blocks, prefix_keys)


def least_load(replicas: int, blocks: int) -> RankingRouter:
    return RankingRouter(replicas, blocks, lambda _: [])


def in_turn(replicas: int, blocks: int) -> InTurn:
    return InTurn(replicas)


ROUTERS = {"prefix affinity": prefix_affinity, "least load": least_load, "in turn": in_turn}
