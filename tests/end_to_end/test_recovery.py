"""Engines that are killed, hang or cannot be started again, as clients see it: mostly not at all."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from asking import Answers, Body, ask, told
from support import RunningServer, running_server, wait_until

SERVE_FAULTY = (sys.executable, "-P", str(Path(__file__).with_name("serve_faulty.py")))
KILLS = 20
STREAMS = 64


def body(place: int, max_tokens: int) -> Body:
    """Greedy, drawn, with stop strings, with logprobs, unstreamed: no two alike."""
    fields: Body = {"prompt": f"{place} bottles", "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    if place % 2:
        fields |= {"temperature": 1.0, "seed": place, "top_p": 0.98}
    if place % 4 == 2:
        fields |= {"logprobs": 2}
    if place % 8 == 3:
        fields |= {"stop": ["~~", "\u00fc"], "repetition_penalty": 1.1}
    if place % 5:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return fields


def quiet(prompts: list[str], max_tokens: int = 30) -> list[Body]:
    return [body(1 + 5 * place, max_tokens) | {"prompt": prompt} for place, prompt in enumerate(prompts)]


@contextmanager
def faulty_server(model: Path, *arguments: str, **options: str) -> Iterator[RunningServer]:
    with running_server("--model", str(model), *arguments, program=SERVE_FAULTY, **options) as server:
        yield server


@pytest.fixture(scope="module")
def faulty(tiny_model: Path) -> Iterator[RunningServer]:
    """Checks its books after every step; no file makes it die."""
    with faulty_server(tiny_model, "--check-invariants") as server:
        yield server
        assert server.metric("headrace_kv_invariant_violations_total") == 0


async def test_twenty_kills_under_64_streams_change_no_token(tiny_model: Path) -> None:
    bodies = [body(place, 240) for place in range(STREAMS)]
    with running_server("--model", str(tiny_model)) as server:
        golden = await ask(server.url, bodies)
        answers = Answers(server.url, bodies)
        asking = asyncio.create_task(answers.gather())
        moments = random.Random(0)
        killed = 0
        for kill in range(KILLS):
            # What an engine has said may arrive after its end: that is not the next one's.
            await answers.arrived(lambda _, killed=killed: server.children not in ([], [killed]))
            enough = answers.count + moments.randrange(STREAMS, STREAMS * 3)
            await answers.arrived(lambda answers, enough=enough: answers.count >= enough)
            killed = server.engine
            os.kill(killed, signal.SIGKILL)
            assert not asking.done(), f"kill {kill} came too late"
        resumed = [told(events) for events in await asking]
        wait_until(lambda: server.metric("headrace_engine_restarts_total") == KILLS)
        assert server.metric("headrace_requests_resumed_total") > KILLS * STREAMS / 2
    assert resumed == golden
    assert sum(usage["completion_tokens"] for answer in golden for usage in answer["usage"]) > STREAMS * 80


async def test_a_stopped_engine_is_found_and_replaced(tiny_model: Path) -> None:
    bodies = quiet(["stopped", "engines", "do not", "answer"], 300)
    with running_server("--model", str(tiny_model), "--watchdog", "2") as server:
        golden = await ask(server.url, bodies)
        answers = Answers(server.url, bodies)
        asking = asyncio.create_task(answers.gather())
        await answers.arrived(lambda answers: answers.count >= 40)
        os.kill(server.engine, signal.SIGSTOP)
        lives, readies = [], []
        async with httpx.AsyncClient(base_url=server.url) as probe:
            while not asking.done():
                lives.append((await probe.get("/health/live")).status_code)
                readies.append((await probe.get("/health/ready")).status_code)
        assert 503 in lives
        assert 503 in readies
        assert lives[-1] == 200
        assert [told(events) for events in await asking] == golden
        assert _status(server, "ready") == 200
        assert _restarts(server, "hang") == 1


async def test_a_hung_step_leaves_its_stacks(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    bodies = quiet(["HANG", "neighbour"])
    with faulty_server(tiny_model, "--watchdog", "2", ONCE=str(tmp_path / "hung")) as server:
        hung = await ask(server.url, bodies)
        assert hung == await ask(server.url, bodies)
        assert _restarts(server, "hang") == 1
    assert 'faulty_engine.py", line' in capfd.readouterr().err


def test_an_idle_engine_is_left_alone_and_so_is_one_whose_server_was_stopped_itself(tiny_model: Path) -> None:
    with running_server("--model", str(tiny_model), "--watchdog", "1") as server:
        engine = server.engine
        for how in (signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT):
            server.process.send_signal(how)
            time.sleep(2.5)  # there is no event to wait for: nothing is to happen in more than twice the bound
        assert server.engine == engine
        assert _restarts(server, "hang") == 0


def _status(server: RunningServer, probe: str) -> int:
    return httpx.get(f"{server.url}/health/{probe}").status_code


def _restarts(server: RunningServer, reason: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith(f'headrace_engine_restarts_total{{reason="{reason}"}}')]
    return float(line.rsplit(" ", 1)[1])


async def test_a_request_that_kills_the_engine_is_found_and_its_neighbours_live(faulty: RunningServer) -> None:
    neighbours = quiet([f"neighbour {place}" for place in range(6)], 40)
    golden = await ask(faulty.url, neighbours)
    for is_streamed in (True, False):
        before = faulty.metric("headrace_engine_restarts_total")
        poison = {"prompt": "KILL", "max_tokens": 20, "ignore_eos": True, "stream": is_streamed}
        answers = Answers(faulty.url, [*neighbours[:3], poison, *neighbours[3:]])
        events = await answers.gather()
        poisoned = told(events.pop(3))
        assert [told(each) for each in events] == golden
        assert (poisoned["errors"], poisoned["done"]) == (["internal_error"], [])
        assert faulty.metric("headrace_engine_restarts_total") == before + 3
        if not is_streamed:
            assert answers.headers[3]["x-should-retry"] == "false"


@pytest.mark.parametrize("word", ["NAN", "RAISE"])
async def test_a_row_that_fails_takes_nobody_with_it(faulty: RunningServer, word: str) -> None:
    neighbours = quiet([f"{place} rows apart" for place in range(31)])
    golden = await ask(faulty.url, neighbours)
    engine = faulty.engine
    culprit = {"prompt": f"{word} is what this long enough prompt says", "max_tokens": 20, "ignore_eos": True}
    *rest, failed = await ask(faulty.url, [*neighbours, culprit])
    assert rest == golden
    assert failed["errors"] == ["internal_error"]
    assert faulty.engine == engine
    (again,) = await ask(faulty.url, [culprit | {"max_tokens": 3}])
    assert again["usage"][0]["prompt_tokens_details"]["cached_tokens"] == 0  # nothing of it was kept
    assert faulty.metric("headrace_kv_invariant_violations_total") == 0


async def test_a_device_that_breaks_costs_an_engine_and_no_request(tiny_model: Path, tmp_path: Path) -> None:
    bodies = quiet(["BREAK", *(f"neighbour {place}" for place in range(7))])
    with faulty_server(tiny_model, ONCE=str(tmp_path / "broken")) as server:
        broken = await ask(server.url, bodies)
        assert _restarts(server, "crash") == 1
        assert broken == await ask(server.url, bodies)
        assert all(answer["errors"] == [] for answer in broken)


async def test_requests_are_queued_while_the_engine_restarts(tiny_model: Path) -> None:
    with running_server("--model", str(tiny_model)) as server:
        golden = await ask(server.url, quiet(["patience"]))
        os.kill(server.engine, signal.SIGKILL)
        wait_until(lambda: _status(server, "ready") == 503)
        assert _status(server, "live") == 200
        assert await ask(server.url, quiet(["patience"])) == golden


async def test_an_engine_that_cannot_be_started_again_ends_the_server(tiny_model: Path, tmp_path: Path) -> None:
    die = tmp_path / "die"
    with faulty_server(tiny_model, exit_code=1, DIE=str(die)) as server:
        answers = Answers(server.url, quiet(["a stream", "and one more"], 400))
        asking = asyncio.create_task(answers.gather())
        await answers.arrived(lambda answers: answers.count >= 10)
        die.touch()
        os.kill(server.engine, signal.SIGKILL)
        cut = [told(events) for events in await asking]
        assert [(answer["errors"], answer["done"]) for answer in cut] == [(["engine_restarting"], [])] * 2
        assert server.process.wait(10) == 1
