"""Requests are sent when the load wants them, never otherwise."""

import asyncio
import random
import time

import pytest
from scipy import stats

from server.bench.load import ClosedLoop, OpenLoop, drive
from server.bench.record import Record, Request


def requests(count: int) -> list[Request]:
    return [Request("/", str(number).encode(), 1) for number in range(count)]


def test_the_gaps_between_poisson_arrivals_are_exponential() -> None:
    times = OpenLoop(rate=50.0, duration_s=200.0).due_times(random.Random(3))
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert stats.kstest(gaps, "expon", args=(0, 1 / 50.0)).pvalue > 0.01
    assert max(times) < 200.0
    assert times == sorted(times)


def test_the_counts_of_poisson_arrivals_have_the_mean_as_their_variance() -> None:
    counts = [len(OpenLoop(4.0, 25.0).due_times(random.Random(seed))) for seed in range(400)]
    mean, variance = sum(counts) / 400, float(stats.tvar(counts))
    assert mean == pytest.approx(100, abs=4 * (100 / 400) ** 0.5)
    assert 0.75 < variance / mean < 1.3  # chi-square with 399 degrees of freedom: four deviations are 0.28


def test_arrivals_follow_the_seed() -> None:
    load = OpenLoop(10.0, 5.0)
    assert load.due_times(random.Random(1)) == load.due_times(random.Random(1))
    assert load.due_times(random.Random(1)) != load.due_times(random.Random(2))


@pytest.mark.parametrize(("concurrency", "count"), [(1, 5), (3, 10), (8, 4)])
async def test_a_closed_loop_keeps_its_concurrency_and_sends_each_request_once(concurrency: int, count: int) -> None:
    in_flight, seen, levels = 0, [], []

    async def ask(request: Request) -> Record:
        nonlocal in_flight
        record = Record(start=time.monotonic(), asked_tokens=1)
        in_flight += 1
        seen.append(request.body)
        levels.append(in_flight)
        for _ in range(3):
            await asyncio.sleep(0)
        in_flight -= 1
        return record

    records = await drive(ClosedLoop(concurrency, count), [(0.0, request) for request in requests(count)], ask)
    assert seen == [request.body for request in requests(count)]
    assert max(levels) == min(concurrency, count)
    assert [record.start for record in records] == sorted(record.start for record in records)
    assert len(records) == count


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    everyone_came = asyncio.Event()
    came = 0

    async def ask(request: Request) -> Record:
        nonlocal came
        record = Record(start=time.monotonic(), asked_tokens=1)
        came += 1
        if came == 5:
            everyone_came.set()
        await everyone_came.wait()  # would hang if any request waited for another's answer
        return record

    dues = [0.0, 0.005, 0.01, 0.01, 0.02]
    async with asyncio.timeout(10):
        records = await drive(OpenLoop(1.0, 1.0), list(zip(dues, requests(5), strict=True)), ask)
    offsets = [record.due - records[0].due for record in records if record.due is not None and records[0].due]
    assert offsets == pytest.approx(dues)
    early = 0.002  # the event loop's timers may be as coarse as a millisecond
    assert all(record.due is not None and record.start > record.due - early for record in records)
