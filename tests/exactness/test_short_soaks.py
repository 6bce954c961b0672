"""The soaks of tests/soak, short enough for every run, and one that has something to find."""

import asyncio
from pathlib import Path

import engine_faults
from serving import serving
from soak import idempotence, leaks
from support import RunningServer, running_server
from test_planted_faults import planted


def test_no_client_is_told_anything_of_another(copying_model: Path) -> None:
    with running_server("--model", str(copying_model), *leaks.SERVER) as server:
        outcome = asyncio.run(leaks.soak(server.url, 64, 300))
        assert leaks.check(server, outcome) == []
        assert outcome.cancelled > 20


def test_the_soak_would_notice(copying_model: Path) -> None:
    with serving(copying_model, planted(engine_faults.a_neighbours_blocks_are_read)) as leaky:
        outcome = asyncio.run(leaks.soak(str(leaky.http.base_url), 8, 40))
    assert outcome.leaks
    assert outcome.wrong


def test_one_prompt_has_one_answer_under_changing_load(tiny_server: RunningServer) -> None:
    answers = asyncio.run(idempotence.soak(tiny_server.url, 60))
    assert len(answers) == 1
    assert answers.total() == 60
