"""How far the simulation is from what was measured: the same traffic, replayed against real servers and simulated."""

from dataclasses import asdict, dataclass

from tqdm import tqdm

from bench.simulation.cluster import Router, simulate
from bench.simulation.figures import Figures, counted, figures
from bench.simulation.predict import GROUPS, SHARED, replicas_of
from bench.simulation.replay import replay
from bench.simulation.routers import ROUTERS
from bench.simulation.step_time import Measured
from bench.simulation.traffic import Traffic, read_lengths
from server.bench.measure import Slo
from server.config import EngineOptions

SCALE = 0.25  # of the lengths, so that minutes have enough requests
RUNS = ((1, "least load"), (2, "least load"), (2, "prefix affinity"))
TARGET = Slo(ttft=1.0, tpot=0.1)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One arrangement, as it was and as it should have been."""

    replicas: int
    router: str
    requests: int
    measured: Figures
    simulated: Figures

    @property
    def errors(self) -> dict[str, float]:
        """Of each figure, relative to what was measured; of shares, in points."""
        was, would_be = asdict(self.measured), asdict(self.simulated)
        return {
            name: would_be[name] - was[name] if name.endswith("share") else would_be[name] / was[name] - 1
            for name in was
        }


def validate(measured: Measured, rate: float, seconds: float) -> list[Comparison]:
    """At so many requests a second and replica."""
    return [_compare(measured, replicas, router, rate, seconds) for replicas, router in tqdm(RUNS, unit="run")]


def _compare(measured: Measured, replicas: int, router: str, rate: float, seconds: float) -> Comparison:
    options = EngineOptions(model=measured.model, threads=measured.threads, kv_memory=measured.kv_memory)
    traffic = Traffic(
        rate=rate * replicas,
        requests=round(rate * replicas * seconds),
        lengths=read_lengths(longest=measured.context_length, scale=SCALE),
        groups=GROUPS * replicas,
        shared=SHARED,
    )

    def fresh() -> Router:
        return ROUTERS[router](replicas, measured.kv_blocks)

    records = replay(replicas, options, traffic, fresh())
    outcome = simulate(replicas_of(measured, replicas), traffic, fresh())
    return Comparison(
        replicas,
        router,
        len(records),
        figures([counted(records)], TARGET),
        figures([counted(outcome.records)], TARGET),
    )
