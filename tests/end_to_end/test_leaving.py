"""How a server takes leave: with its streams finished, or told that they are not; never with its engine left behind."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import httpx
from asking import Answers, Body, ask, told
from support import RunningServer, running_server, wait_until

SERVE_FAULTY = (sys.executable, "-P", str(Path(__file__).with_name("serve_faulty.py")))
LEAVE_S = 5.0  # an engine without a server


def bodies(count: int, max_tokens: int) -> list[Body]:
    fields: Body = {"max_tokens": max_tokens, "ignore_eos": True, "stream": True, "temperature": 1}
    return [fields | {"prompt": f"stream {place}", "seed": place} for place in range(count)]


async def started(server: RunningServer, asked: list[Body]) -> tuple[Answers, asyncio.Task[list[list[Body]]]]:
    answers = Answers(server.url, asked)
    asking = asyncio.create_task(answers.gather())
    await answers.arrived(lambda answers: all(answers.events))
    return answers, asking


async def test_a_server_that_is_told_to_end_finishes_64_streams(tiny_model: Path) -> None:
    asked = bodies(64, 450)  # longer than the delay
    options = ("--drain-delay", "0.5", "--max-sequences", "70")
    with running_server("--model", str(tiny_model), *options) as server:
        golden = await ask(server.url, asked)
        _, asking = await started(server, asked)
        server.process.send_signal(signal.SIGTERM)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            seen = [await _try(client)]
            while not asking.done() and seen[-1][0] != 503:
                seen.append(await _try(client))
            refused = await client.post("/v1/completions", json=bodies(1, 1)[0])
            assert (await client.get("/health/live")).status_code == 200
        assert (200, 503) in seen, "taken while unready"
        assert refused.json()["error"]["code"] == "server_draining"
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["connection"] == "close"
        assert [told(events) for events in await asking] == golden
        assert all(answer["done"] for answer in golden)
        assert await asyncio.to_thread(server.process.wait, 10) == 0


async def _try(client: httpx.AsyncClient) -> tuple[int, int]:
    """The status of a new request, and then the readiness."""
    asked = await client.post("/v1/completions", json=bodies(1, 1)[0])
    return asked.status_code, (await client.get("/health/ready")).status_code


async def test_what_is_not_finished_in_time_is_told_so(tiny_model: Path) -> None:
    asked = [*bodies(8, 450), bodies(1, 450)[0] | {"stream": False}]
    with running_server("--model", str(tiny_model), "--drain-timeout", "0") as server:
        answers = Answers(server.url, asked)
        asking = asyncio.create_task(answers.gather())
        await answers.arrived(lambda answers: all(answers.events[:-1]))
        server.process.send_signal(signal.SIGTERM)
        events = await asking
        assert await asyncio.to_thread(server.process.wait, 10) == 0
    for each in map(told, events):
        assert (each["errors"], each["done"]) == (["server_draining"], [])
    assert all(each[-1].get("cut") for each in events[:-1])
    assert events[-1][0]["status"] == 503


async def test_a_second_signal_is_obeyed_at_once(tiny_model: Path, tmp_path: Path) -> None:
    hanging = bodies(1, 20)[0] | {"prompt": "HANG"}
    environment = {"ONCE": str(tmp_path / "hung")}
    with running_server("--model", str(tiny_model), program=SERVE_FAULTY, exit_code=1, **environment) as server:
        engine = server.engine
        answers, asking = await started(server, [hanging])
        wait_until(lambda: (tmp_path / "hung").exists())
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 10) == 1
        assert time.monotonic() - start < 2
        await asking
        assert not told(answers.events[0])["done"]
        wait_until(lambda: not Path(f"/proc/{engine}").exists(), LEAVE_S)


async def test_an_engine_in_a_long_step_does_not_outlive_its_server(tiny_model: Path, tmp_path: Path) -> None:
    environment = {"ONCE": str(tmp_path / "hung")}
    with running_server("--model", str(tiny_model), program=SERVE_FAULTY, exit_code=-9, **environment) as server:
        engine = server.engine
        _, asking = await started(server, [bodies(1, 20)[0] | {"prompt": "HANG"}])
        wait_until(lambda: (tmp_path / "hung").exists())
        os.kill(server.process.pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{engine}").exists(), LEAVE_S)
        await asking
