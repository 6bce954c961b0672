"""What the runs add up to: medians, ratios to the peers, and how these compare with the floors that were set."""

import statistics
from collections import defaultdict
from dataclasses import dataclass, field

from bench.peers.contestants import FAITHFUL, FAST, LLAMA_CPP
from bench.peers.llama_cpp import SAME_FORM


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity of the comparison. Floors are ratios to the same file and to the peer's best; of costs, ceilings."""

    key: str
    title: str  # with the unit
    is_cost: bool = False
    floors: dict[str, tuple[float, float]] = field(default_factory=dict)
    limit: float | None = None  # of Headrace's own value

    def better(self, values: list[float]) -> float:
        return min(values) if self.is_cost else max(values)


def _floors(same: float, best: float, fast_same: float, fast_best: float) -> dict[str, tuple[float, float]]:
    return {FAITHFUL: (same, best), FAST: (fast_same, fast_best)}


FIGURES = (
    Figure("prefill", "prefill, tok/s", floors=_floors(4.5, 1.6, 7, 2.5)),
    Figure("output 1", "1 at once, tok/s", floors=_floors(2.5, 1.5, 2.5, 1.6)),
    Figure("output 8", "8 at once, tok/s", floors=_floors(5, 2.2, 7, 3)),
    Figure("output 32", "32 at once, tok/s", floors=_floors(6, 2.2, 8, 3.2)),
    Figure("ttft", "TTFT, 32 at once, ms", is_cost=True, floors=_floors(0.25, 0.5, 0.15, 0.35)),
    Figure("decode", "decode alone, tok/s", floors=_floors(1.8, 1.1, 1.8, 1.1)),
    Figure("prefix", "TTFT, known : new", is_cost=True, limit=0.1),
    Figure("memory", "memory, 32 at once, MB", is_cost=True, limit=700),
)


class Results:
    """Every value measured, by figure, contestant, and the way that the contestant was started."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))

    def add(self, figure: str, contestant: str, way: int, value: float) -> None:
        self._values[figure][contestant].setdefault(way, []).append(value)

    @property
    def contestants(self) -> list[str]:
        return list(dict.fromkeys(name for by_name in self._values.values() for name in by_name))

    def values(self, figure: Figure, contestant: str) -> list[float]:
        """One value a round, of the way with the better median; empty where there was none."""
        ways = list(self._values[figure.key][contestant].values()) if contestant in self._values[figure.key] else []
        medians = [statistics.median(values) for values in ways]
        return ways[medians.index(figure.better(medians))] if ways else []

    def median(self, figure: Figure, contestant: str) -> float | None:
        values = self.values(figure, contestant)
        return statistics.median(values) if values else None

    def ratios(self, figure: Figure, contestant: str) -> tuple[float | None, float | None]:
        """To llama.cpp on the same file, and to the best of all its files."""
        ours = self.median(figure, contestant)
        peers = {name: value for name in LLAMA_CPP.values() if (value := self.median(figure, name))}
        if ours is None or not peers:
            return None, None
        same = peers.get(LLAMA_CPP[SAME_FORM])
        return ours / same if same else None, ours / figure.better(list(peers.values()))
