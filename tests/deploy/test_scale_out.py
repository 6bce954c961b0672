"""Replicas in a real Ray cluster: one endpoint, the tokens of one engine, whatever becomes of a replica."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from asking import Answers, Body, ask, told
from replicas import OPTIONS, engine_processes, is_there, replica_processes, replicas, routed, wait_for_replicas
from support import RunningServer, command, running_server, wait_until

pytestmark = pytest.mark.deploy

STREAMS = 12


def bodies(max_tokens: int) -> list[Body]:
    """Greedy and drawn, with logprobs and without, streamed and whole."""
    asked: list[Body] = []
    for place in range(STREAMS):
        body: Body = {"prompt": f"{place} bottles of", "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
        body |= {"temperature": 1.0, "seed": place} if place % 2 else {}
        body |= {"logprobs": 2} if place % 3 == 0 else {}
        body |= {"stream": True, "stream_options": {"include_usage": True}} if place % 4 else {}
        asked.append(body)
    return asked


@pytest.fixture(scope="module")
def golden(default_model: Path) -> list[object]:
    """What one engine says."""
    with running_server("--model", str(default_model), "--threads", "1") as server:
        return asyncio.run(ask(server.url, bodies(160)))


@pytest.fixture(scope="module")
def served(default_model: Path) -> Iterator[RunningServer]:
    with replicas(default_model, "--watchdog", "5") as server:
        yield server
        assert server.metric("headrace_kv_invariant_violations_total") == 0


async def hit(server: RunningServer, golden: list[object], pid: int, how: signal.Signals) -> None:
    """Sends a process a signal while every stream runs: all say what they would have said."""
    answers = Answers(server.url, bodies(160))
    asking = asyncio.create_task(answers.gather())
    await answers.arrived(lambda answers: answers.count >= STREAMS * 8)
    os.kill(pid, how)
    assert not asking.done(), "it came too late"
    assert [told(events) for events in await asking] == golden


async def test_two_replicas_say_what_one_engine_says(served: RunningServer, golden: list[object]) -> None:
    assert await ask(served.url, bodies(160)) == golden
    by_replica = {replica for (replica, _), count in routed(served).items() if count}
    assert len(by_replica) == 2


async def test_a_replica_killed_under_load_costs_no_stream(served: RunningServer, golden: list[object]) -> None:
    victim = replica_processes(served)[0]
    await hit(served, golden, victim, signal.SIGKILL)
    assert served.metric("headrace_requests_resumed_total") > 0
    wait_until(lambda: not is_there(victim))
    wait_for_replicas(served, 2)


async def test_a_stuck_engine_makes_its_replica_be_left(served: RunningServer, golden: list[object]) -> None:
    moved = served.metric("headrace_requests_resumed_total")
    stuck = engine_processes(served)[0]
    await hit(served, golden, stuck, signal.SIGSTOP)
    assert served.metric("headrace_requests_resumed_total") > moved
    wait_until(lambda: not is_there(stuck), 60.0)
    wait_for_replicas(served, 2)


async def test_a_rolling_restart_fails_no_request(served: RunningServer, golden: list[object]) -> None:
    old = set(replica_processes(served))
    served.process.send_signal(signal.SIGHUP)
    rounds = 0
    async with asyncio.timeout(240):
        while old & set(replica_processes(served)):
            assert await ask(served.url, bodies(160)) == golden
            rounds += 1
    assert rounds > 0
    wait_for_replicas(served, 2)


async def test_what_follows_a_prompt_reaches_the_replica_that_had_it(served: RunningServer) -> None:
    prompts = [f"Story {number}: " + "once there was a river that ran uphill. " * 20 for number in range(6)]
    before = routed(served)
    async with httpx.AsyncClient(base_url=served.url, timeout=120) as client:
        for turn in range(3):
            for prompt in prompts:
                body = {"prompt": prompt + "And then? " * turn, "max_tokens": 2}
                assert (await client.post("/v1/completions", json=body)).status_code == 200
    wait_until(lambda: sum(routed(served).values()) - sum(before.values()) == 18)
    now = routed(served)
    by_why = {
        why: sum(now[key] - before.get(key, 0) for key in now if key[1] == why) for why in ("prefix", "load", "new")
    }
    assert by_why == {"prefix": 12, "load": 0, "new": 6}


async def test_a_prompt_that_is_read_keeps_nobody_away(served: RunningServer) -> None:
    """Four streams, of which the first has a long prompt: two for each replica, as none has anything left to read."""
    prompts = ["Listen: " + "a river ran uphill and back. " * 60, "A", "Well", "So"]
    before, running = routed(served), []
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as client, contextlib.AsyncExitStack() as stack:
        for prompt in prompts:
            body = {"prompt": prompt, "max_tokens": 2000, "ignore_eos": True, "stream": True}
            answer = await stack.enter_async_context(client.stream("POST", "/v1/completions", json=body))
            running.append(answer.aiter_lines())  # one that is forgotten ends its request
            await anext(running[-1])
        wait_until(lambda: sum(routed(served).values()) - sum(before.values()) == 4)
    by_replica: Counter[str] = Counter()
    for (replica, why), count in routed(served).items():
        by_replica[replica] += round(count - before.get((replica, why), 0))
    assert sorted((+by_replica).values()) == [2, 2]  # some that are gone are still counted


async def test_whoever_leaves_is_computed_no_further(served: RunningServer) -> None:
    body = {"prompt": "For ever", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    async with (
        httpx.AsyncClient(base_url=served.url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        await anext(answer.aiter_lines())
        wait_until(lambda: served.metric("headrace_replica_requests_running") == 1, 30.0)
    wait_until(lambda: served.metric("headrace_replica_requests_running") == 0, 30.0)


def test_it_leaves_nothing_behind(default_model: Path) -> None:
    with replicas(default_model, count="1") as server:
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
        left = [*replica_processes(server), *engine_processes(server)]
        assert len(left) == 2
    wait_until(lambda: not any(map(is_there, left)), 30.0)


async def test_a_queue_brings_another_replica(default_model: Path) -> None:
    with replicas(default_model, "--max-sequences", "2", count="1-2") as server:
        async with asyncio.timeout(240):
            while server.metric("headrace_replicas") < 2:
                assert all(not answer["errors"] for answer in await ask(server.url, bodies(160)))


def test_a_model_that_no_replica_can_load_is_one_line() -> None:
    options = ("--ray", "1", *OPTIONS, "--port", "0", "--model", "/nonexistent")
    environment = os.environ | {"RAY_ADDRESS": "local"}
    done = subprocess.run(command("serve", *options), env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("headrace: --ray: no replica can be started: /nonexistent: no such file")
    assert done.stderr.count("\n") == 1
