"""How several rounds, of one server or of two, become one row: medians, their spread, and the ratio."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from server.bench.load import Load
from server.bench.measure import Figures, Spread
from server.bench.session import Run


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity under one load: its value in each round, by server."""

    load: Load
    name: str
    values: dict[str, list[float]]

    def median(self, server: str) -> float | None:
        values = self.values[server]
        return statistics.median(values) if values else None

    @property
    def ratio(self) -> float | None:
        """A's median over B's; None where one is missing or B's is zero."""
        a, b = (self.median(name) if name in self.values else None for name in "AB")
        return None if a is None or not b else a / b


def _plateau(f: Figures) -> float | None:
    return f.plateau.output_tokens_per_s if f.plateau else None


def _milliseconds(name: str, point: str, f: Figures) -> float | None:
    spread: Spread | None = getattr(f, name)
    return None if spread is None else 1000 * float(getattr(spread, point))


QUANTITIES: dict[str, Callable[[Figures], float | None]] = {
    "output tok/s": lambda f: f.output_tokens_per_s,
    "plateau tok/s": _plateau,
    "total tok/s": lambda f: f.total_tokens_per_s,
    "requests/s": lambda f: f.requests_per_s,
    "good requests/s": lambda f: f.good_requests_per_s,
    **{
        f"{name.upper()} {point}, ms": partial(_milliseconds, name, point)
        for name in ("ttft", "tpot", "itl", "e2e")
        for point in ("p50", "p95")
    },
    "failed": lambda f: f.failed,
    "client CPU, %": lambda f: 100 * f.client_cpu,
}


def compare(runs: Sequence[Run]) -> list[Row]:
    """A row for every load and quantity, loads in the order they ran; quantities that nobody has are left out."""
    loads = list(dict.fromkeys(run.load for run in runs))
    servers = list(dict.fromkeys(run.server for run in runs))
    rows = []
    for load in loads:
        for name, quantity in QUANTITIES.items():
            values = {
                server: [
                    value
                    for run in runs
                    if run.server == server and run.load == load and (value := quantity(run.figures)) is not None
                ]
                for server in servers
            }
            if any(values.values()):
                rows.append(Row(load, name, values))
    return rows
