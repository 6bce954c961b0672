"""A server whose engine tells the device each step ahead of its turn says what any other says, also when it dies."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from asking import Answers, Body, ask, told
from support import RunningServer, running_server


def bodies(max_tokens: int) -> list[Body]:
    """Greedy and drawn; one that every step has to wait for; one of several chunks; one that ends as it likes."""
    same = {"max_tokens": max_tokens, "stream": True, "seed": 7, "ignore_eos": True, "temperature": 0.8}
    return [
        {"prompt": "one step ahead", **same, "temperature": 0},
        {"prompt": "and a draw", **same, "top_p": 0.9},
        {"prompt": "penalised", **same, "frequency_penalty": 0.5, "max_tokens": max_tokens // 4},
        {"prompt": "a longer prompt " * 30, **same},
        {"prompt": "ends", **same, "ignore_eos": False, "stop": "a"},
    ]


async def test_no_token_changes_and_no_death_shows(tiny_server: RunningServer, tiny_model: Path) -> None:
    golden = await ask(tiny_server.url, bodies(150))
    with running_server("--model", str(tiny_model), "--overlap", "on", "--check-invariants") as server:
        assert await ask(server.url, bodies(150)) == golden
        answers = Answers(server.url, bodies(150))
        asking = asyncio.create_task(answers.gather())
        await answers.arrived(lambda answers: answers.count >= 60)
        os.kill(server.engine, signal.SIGKILL)
        assert [told(events) for events in await asking] == golden
        assert server.metric("headrace_engine_restarts_total") == 1
        assert server.metric("headrace_kv_invariant_violations_total") == 0


def test_ranks_that_share_a_model_cannot_and_say_so(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    both = ("--overlap", "on", "--tensor-parallel", "2")
    with running_server("--model", str(tiny_model), *both, wait=False, exit_code=1) as server:
        server.process.wait(60)
    lines = [line for line in capfd.readouterr().err.splitlines() if "overlap" in line]
    assert lines == ["headrace: overlap on: ranks that share a model compute one step after the other"]
