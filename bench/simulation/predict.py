"""What so many replicas would do under such a load: every scenario simulated, on every core."""

import gc
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from tqdm import tqdm

from bench.simulation.cluster import simulate
from bench.simulation.figures import Figures, counted, figures
from bench.simulation.replica import Replica
from bench.simulation.routers import ROUTERS, WEIGHTS
from bench.simulation.step_time import Measured
from bench.simulation.traffic import Traffic, read_lengths
from server.engine.scheduler import Limits

REQUESTS = 20  # of each replica
ENOUGH_REPLICAS = 32  # fewer are simulated several times
GROUPS = 2  # for each replica
SHARED = 0.37  # of 12,031 conversations' prompt blocks, those that an earlier one began with: Mooncake's trace, 2024


@dataclass(frozen=True, slots=True)
class Scenario:
    """So many replicas, each of which has this rate on average."""

    router: str
    replicas: int
    rate: float  # requests per second and replica
    requests: int = REQUESTS  # per replica
    runs: int = 1  # with other seeds
    shared: float = SHARED

    def traffic(self, measured: Measured, seed: int) -> Traffic:
        return Traffic(
            rate=self.rate * self.replicas,
            requests=self.requests * self.replicas,
            lengths=read_lengths(longest=measured.context_length),
            groups=GROUPS * self.replicas,
            shared=self.shared,
            seed=seed,
        )


COMPARED = ("prefix affinity", "counting requests, 1024", "least load", "in turn")
BY_REPLICAS = [
    Scenario(router, replicas, rate=0.15, runs=max(1, ENOUGH_REPLICAS // replicas))
    for replicas in (1, 2, 4, 8, 16, 32, 64, 128, 256, 1000)
    for router in COMPARED
]
BY_RATE = [Scenario(router, 16, rate, runs=2) for rate in (0.05, 0.1, 0.15, 0.2, 0.25) for router in COMPARED]
BY_WEIGHT = [Scenario(router, 16, rate=0.15, runs=2) for router in WEIGHTS]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What came out, and what it took to find out."""

    scenario: Scenario
    figures: Figures
    busy: float  # share of the time until the last arrival in which a replica computes
    requests: int
    steps: int
    preemptions: int
    took_s: float


def replicas_of(measured: Measured, count: int) -> list[Replica]:
    limits = Limits(measured.max_sequences, measured.step_tokens, context_rate=measured.context_rate)
    return [Replica(limits, measured.kv_blocks, measured.time) for _ in range(count)]


def predict(scenario: Scenario, measured: Measured) -> Prediction:
    """Of all its runs together."""
    gc.disable()  # it would walk through all tokens again and again; nothing here lies in a ring that grows
    began = time.perf_counter()
    outcomes = []
    for seed in range(scenario.runs):
        router = ROUTERS[scenario.router](scenario.replicas, measured.kv_blocks)
        replicas = replicas_of(measured, scenario.replicas)
        outcomes.append(simulate(replicas, scenario.traffic(measured, seed), router))
    return Prediction(
        scenario,
        figures([counted(outcome.records) for outcome in outcomes]),
        sum(outcome.busy for outcome in outcomes) / scenario.runs,
        sum(len(outcome.records) for outcome in outcomes),
        sum(outcome.steps for outcome in outcomes),
        sum(outcome.preemptions for outcome in outcomes),
        time.perf_counter() - began,
    )


def predict_all(scenarios: Iterable[Scenario], measured: Measured, workers: int | None = None) -> Iterator[Prediction]:
    """Each as soon as it is done, the shortest begun first."""
    ordered = sorted(set(scenarios), key=lambda scenario: scenario.replicas * scenario.runs)
    with ProcessPoolExecutor(workers or len(os.sched_getaffinity(0)), max_tasks_per_child=1) as pool:
        futures = [pool.submit(predict, scenario, measured) for scenario in ordered]
        total = sum(scenario.replicas * scenario.runs for scenario in ordered)
        with tqdm(total=total, unit="replica") as progress:
            for future in as_completed(futures):
                prediction = future.result()
                progress.update(prediction.scenario.replicas * prediction.scenario.runs)
                yield prediction
