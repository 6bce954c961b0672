"""Many replicas in virtual time: nothing is lost, and what can be computed by hand comes out as computed."""

import math
import random
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import pytest

from bench.simulation.chart import chart
from bench.simulation.cluster import Outcome, Router, simulate
from bench.simulation.document import document
from bench.simulation.figures import Figures, counted, figures
from bench.simulation.predict import COMPARED, Prediction, Scenario, predict, predict_all
from bench.simulation.replay import ask_all
from bench.simulation.replica import Replica
from bench.simulation.routers import ROUTERS, InTurn
from bench.simulation.step_time import Measured, Quality, Shape, StepTime, fit
from bench.simulation.traffic import Arrival, Traffic, read_lengths
from bench.simulation.validation import Comparison
from model.batch import Batch, Chunk
from server.bench.measure import Slo
from server.bench.record import Record, Usage
from server.engine.scheduler import Limits
from server.scale_out.routing import CROWD_TOKENS

TIME = StepTime(base=0.003, decoding=0.0015, context=3e-6, prompt=0.0013, pairs=1.4e-6)
LIMITS = Limits(max_sequences=8, step_tokens=512)
BLOCKS = 200
COUNTING = f"counting requests, {CROWD_TOKENS}"
LENGTHS = [(40, 3), (300, 20), (700, 8)]
MEASURED = Measured(
    machine="a machine",
    model="a model",
    threads=1,
    kv_memory=1.0,
    kv_blocks=600,
    max_sequences=8,
    step_tokens=512,
    context_rate=1536.0,
    context_length=8192,
    time=TIME,
    quality=Quality(10, 0.99, 0.01, 0.02, 0.03),
)


def traffic(requests: int = 200, replicas: int = 4, **changes: object) -> Traffic:
    usual = Traffic(rate=1.5 * replicas, requests=requests, lengths=LENGTHS, groups=2 * replicas, shared=0.5)
    return replace(usual, **changes)


def run(router: str, arrivals: Traffic, replicas: int = 4, blocks: int = BLOCKS) -> Outcome:
    made = [Replica(LIMITS, blocks, TIME) for _ in range(replicas)]
    return simulate(made, arrivals, ROUTERS[router](replicas, blocks))


@pytest.mark.parametrize("router", COMPARED)
def test_every_request_ends_once_with_all_its_tokens(router: str) -> None:
    arrivals = traffic()
    outcome = run(router, arrivals)
    asked = [(arrival.at, arrival.output_tokens, len(arrival.prompt)) for arrival in arrivals]
    assert [(one.start, one.output_tokens, one.prompt_tokens) for one in outcome.records] == asked
    assert all(record.start < record.chunks[0] <= record.end for record in outcome.records)


def test_replicas_are_empty_in_the_end_though_some_lost_their_blocks_in_between() -> None:
    replicas = [Replica(LIMITS, 60, TIME) for _ in range(2)]
    outcome = simulate(replicas, traffic(rate=20.0, lengths=[(500, 100)]), InTurn(2))
    assert outcome.preemptions > 0
    for replica in replicas:
        assert replica.is_idle
        assert replica.scheduler.pool.used == 0
        assert replica.scheduler.check() is None


@pytest.mark.parametrize("router", COMPARED)
def test_the_same_seed_has_the_same_outcome(router: str) -> None:
    first, again = run(router, traffic(seed=7)), run(router, traffic(seed=7))
    assert (first.records, first.places) == (again.records, again.places)
    assert run(router, traffic(seed=8)).records != first.records


def test_a_request_alone_takes_the_sum_of_its_steps() -> None:
    prompt, answer = [*range(1200)], 50
    (record,) = simulate([Replica(LIMITS, BLOCKS, TIME)], [Arrival(0, 5.0, prompt, answer)], InTurn(1)).records
    attended = 1200 * 1201 / 2
    reading = 3 * TIME.base + 1200 * TIME.prompt + attended * TIME.pairs  # in steps of 512 tokens
    contexts = sum(range(1201, 1200 + answer))
    decoding = (answer - 1) * (TIME.base + TIME.decoding) + contexts * TIME.context
    assert record.ttft == pytest.approx(reading, rel=1e-3)  # pairs of a chunk are whole numbers
    assert record.e2e == pytest.approx(reading + decoding, rel=1e-3)


def waits_one_at_a_time(arrivals: Traffic) -> list[float]:
    one_second = StepTime(base=1.0, decoding=0.0, context=0.0, prompt=0.0, pairs=0.0)
    replica = Replica(Limits(max_sequences=1, step_tokens=512), BLOCKS, one_second)
    return [record.ttft - 1.0 for record in simulate([replica], arrivals, InTurn(1)).records]


def test_who_is_served_one_at_a_time_waits_for_what_the_one_before_leaves() -> None:
    """Lindley's recursion."""
    arrivals = traffic(2000, rate=0.8, lengths=[(2, 1)])
    expected = [0.0]
    for before, after in pairwise(arrival.at for arrival in arrivals):
        expected.append(max(0.0, expected[-1] + 1.0 - (after - before)))
    assert waits_one_at_a_time(arrivals) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("busy", [0.3, 0.6])
def test_waiting_takes_as_long_as_queueing_theory_says(busy: float) -> None:
    """Pollaczek and Khinchine: in an M/D/1 queue, waiting takes busy / (2 - 2 busy) services on average."""
    runs = [waits_one_at_a_time(traffic(5000, rate=busy, lengths=[(2, 1)], seed=seed)) for seed in range(3)]
    assert sum(map(sum, runs)) / 15_000 == pytest.approx(busy / (2 - 2 * busy), rel=0.1)


def test_affinity_finds_more_in_the_caches_than_least_load_and_that_more_than_nothing() -> None:
    def cached_share(router: str, shared: float) -> float:
        outcome = run(router, traffic(400, replicas=8, shared=shared), replicas=8)
        return figures([counted(outcome.records)]).cached_share

    assert cached_share("prefix affinity", 0.5) > 1.3 * cached_share("least load", 0.5) > 0
    assert cached_share("prefix affinity", 0.0) == 0


def test_affinity_that_knows_what_is_unread_waits_less_than_one_that_counts_requests() -> None:
    arrivals = traffic(600, rate=4.0, seed=3)
    knowing, counting = (figures([run(router, arrivals).records]) for router in ("prefix affinity", COUNTING))
    assert knowing.ttft_p90 < counting.ttft_p90


def test_least_load_waits_less_than_taking_turns() -> None:
    waits = {router: figures([run(router, traffic(600, rate=9.0, seed=3)).records]) for router in COMPARED}
    assert waits["least load"].ttft_p90 < waits["in turn"].ttft_p90


def test_prompts_of_a_group_begin_alike_and_those_of_others_do_not() -> None:
    (first, *others) = [arrival.prompt for arrival in traffic(40, groups=2, lengths=[(100, 1)])]
    alike = [sum(a == b for a, b in zip(first[:50], other[:50], strict=True)) for other in others]
    assert set(alike) & {50}
    assert min(alike) < 5
    assert all(first[50:] != other[50:] for other in others)


def test_arrivals_come_at_the_rate_and_lengths_are_those_of_the_trace() -> None:
    lengths = read_lengths()
    assert len(lengths) == 1000
    assert sum(prompt for prompt, _ in lengths) / 1000 == pytest.approx(1154.7, rel=1e-3)
    assert sum(output for _, output in lengths) / 1000 == pytest.approx(211.1, rel=5e-3)
    assert all(prompt + output <= 800 for prompt, output in read_lengths(longest=800))
    times = [arrival.at for arrival in traffic(4000, rate=10.0, lengths=[(1, 1)])]
    gaps = [after - before for before, after in pairwise(times)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.1, rel=0.06)


def test_a_fit_finds_what_was_planted() -> None:
    rng = random.Random(1)
    shapes = [
        Shape(rng.randint(0, 32), rng.randint(0, 9000), rng.randint(0, 512), rng.randint(0, 400_000))
        for _ in range(300)
    ]

    def seconds(shape: Shape) -> float:
        exact = TIME.base + TIME.decoding * shape.decoding + TIME.context * shape.context
        return (exact + TIME.prompt * shape.prompt + TIME.pairs * shape.pairs) * rng.uniform(0.99, 1.01)

    found, quality = fit(shapes, [seconds(shape) for shape in shapes])
    for name in ("decoding", "context", "prompt", "pairs"):
        assert getattr(found, name) == pytest.approx(getattr(TIME, name), rel=0.03)
    assert quality.r2 > 0.99
    assert 0.002 < quality.median_error < quality.p95_error < quality.largest_error < 0.02


def test_no_part_of_a_step_takes_less_than_no_time() -> None:
    shapes = [Shape(count, count * 100 + jitter, 0, 0) for count in range(1, 20) for jitter in (0, 7)]
    found, _ = fit(shapes, [0.01 + 0.001 * shape.decoding - 1e-7 * (shape.context % 100) for shape in shapes])
    assert min(found.base, found.decoding, found.context, found.prompt, found.pairs) == 0
    assert found.base == pytest.approx(0.01, rel=0.01)


def test_a_step_is_measured_by_what_its_rows_attend_to() -> None:
    tokens = [0] * 30
    chunks = [Chunk(tokens, 29, 30, [], 30, None), Chunk(tokens, 10, 14, [], 30, None)]
    shape = Shape.of(Batch(chunks))
    assert shape == Shape(decoding=1, context=30, prompt=4, pairs=11 + 12 + 13 + 14)
    assert StepTime(1.0, 10.0, 100.0, 1000.0, 10000.0)(Batch(chunks)) == 1 + 10 + 100 * 30 + 1000 * 4 + 10000 * 50


def test_goodput_counts_what_met_both_limits() -> None:
    def record(start: float, first: float, end: float) -> Record:
        return Record(start, 11, chunks=[start + first], finish=start + end, usage=Usage(100, 11, 25))

    run = [record(0.0, 0.5, 1.5), record(1.0, 0.5, 9.5), record(2.0, 3.0, 4.0), record(4.0, 0.5, 1.5)]
    found = figures([run], Slo(ttft=1.0, tpot=0.1))
    assert (found.good_share, found.goodput, found.cached_share) == (0.5, 0.5 * 3 / 4, 0.25)
    assert found.output_tokens_per_s == 44 / 10.5


def test_scenarios_come_out_the_same_in_other_processes() -> None:
    scenarios = [Scenario(router, 2, 0.2, requests=10) for router in ("least load", "in turn")]
    apart = {one.scenario: one.figures for one in predict_all(scenarios, MEASURED, workers=2)}
    assert apart == {scenario: predict(scenario, MEASURED).figures for scenario in scenarios}


async def test_a_replay_tells_the_router_of_first_tokens_and_of_ends(fake) -> None:
    heard: list[tuple[str, int]] = []

    class Listening(InTurn):
        def begun(self, arrival_id: int) -> None:
            heard.append(("begun", arrival_id))

        def through(self, arrival_id: int) -> None:
            heard.append(("through", arrival_id))

    await ask_all([fake.url[:-3]], traffic(10, rate=200.0, lengths=[(20, 3)]), Listening(1))
    assert sorted(heard) == [(what, number) for what in ("begun", "through") for number in range(10)]


async def test_a_replay_asks_each_server_what_is_sent_there(fake, second_fake) -> None:
    arrivals = traffic(10, rate=200.0, lengths=[(20, 3)])
    records = await ask_all([fake.url[:-3], second_fake.url[:-3]], arrivals, InTurn(2))
    prompts = [arrival.prompt for arrival in arrivals]
    assert sorted(body["prompt"] for body in fake.bodies) == sorted(prompts[::2])
    assert sorted(body["prompt"] for body in second_fake.bodies) == sorted(prompts[1::2])
    assert [record.output_tokens for record in records] == [3] * 10


def test_a_router_hears_of_every_answer() -> None:
    class Counting(InTurn):
        def __init__(self) -> None:
            super().__init__(2)
            self.open: set[int] = set()
            self.reading: set[int] = set()
            self.most = 0

        def send(self, arrival: Arrival) -> int:
            self.open.add(arrival.id)
            self.reading.add(arrival.id)
            self.most = max(self.most, len(self.open))
            return super().send(arrival)

        def begun(self, arrival_id: int) -> None:
            self.reading.remove(arrival_id)

        def through(self, arrival_id: int) -> None:
            assert arrival_id not in self.reading
            self.open.remove(arrival_id)

    router: Router = (counting := Counting())
    simulate([Replica(LIMITS, BLOCKS, TIME) for _ in range(2)], traffic(60), router)
    assert counting.open == counting.reading == set()
    assert counting.most > 1


def predictions() -> list[Prediction]:
    now = Figures(
        ttft_p50=1.0, ttft_p90=2.0, ttft_p99=3.0, tpot_p50=0.01, output_tokens_per_s=50.0, good_share=0.8, goodput=0.9,
        cached_share=0.3,
    )  # fmt: skip
    places = [(router, replicas) for replicas in (1, 2) for router in COMPARED]
    return [Prediction(Scenario(*place, 0.1), now, 0.5, 80, 9000, 0, 2.0) for place in places]


def test_the_plot_is_a_document_with_a_curve_for_each_router_and_figure() -> None:
    tree = ET.fromstring(chart(predictions(), predictions()))
    lines = list(tree.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 2 * 3 * len(COMPARED)
    assert len({line.get("class", "").split()[1] for line in lines}) == len(COMPARED)


def test_the_page_states_the_errors() -> None:
    was = predictions()[0].figures
    would_be = replace(was, ttft_p90=2.5, good_share=0.7)
    comparison = Comparison(2, "least load", 100, was, would_be)
    assert comparison.errors["ttft_p90"] == pytest.approx(0.25)
    assert comparison.errors["good_share"] == pytest.approx(-0.1)
    page = document(MEASURED, [comparison], predictions(), predictions(), predictions())
    assert "| error | +0.0% | +25.0% | +0.0% | +0.0% | +0.0% | -10.0 points | +0.0 points |" in page
    assert math.isclose(comparison.errors["ttft_p50"], 0.0)
