"""A server that speculates says to the last bit what one says that does not, and says it in fewer steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import RunningServer, running_server

COPY = "def area(width, height):\n    return width * height\n\n" * 3 + "def area("
PLAIN = "The most important thing to know about the sea is"
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy, copying": {"prompt": COPY, "temperature": 0},
    "greedy": {"prompt": PLAIN, "temperature": 0},
    "seeded, copying": {"prompt": COPY, "temperature": 0.6, "seed": 5, "top_p": 0.95},
    "seeded": {"prompt": PLAIN, "temperature": 1.0, "seed": 6, "top_k": 40},
    "several choices": {"prompt": COPY, "temperature": 0.5, "seed": 7, "n": 3},
    "several prompts": {"prompt": [COPY, PLAIN], "temperature": 0},
    "stopped": {"prompt": COPY, "temperature": 0, "stop": ["height", "e"], "ignore_eos": True},
    "cut in the middle": {"prompt": COPY, "temperature": 0, "max_tokens": 7},
    "penalised": {"prompt": COPY, "temperature": 0, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "less repetitive": {"prompt": COPY, "temperature": 0.7, "seed": 8, "repetition_penalty": 1.2},
    "biased": {"prompt": COPY, "temperature": 0, "logit_bias": {"10": 3.0, "32": -3.0}},
    "not ending yet": {"prompt": COPY, "temperature": 0.3, "seed": 9, "min_tokens": 20},
}
Pair = tuple[RunningServer, RunningServer]


@contextmanager
def pair(model: Path) -> Iterator[Pair]:
    """One server that speculates and one that does not."""
    common = ("--model", str(model), "--check-invariants")
    with running_server(*common, "--speculation") as fast, running_server(*common, "--no-speculation") as plain:
        yield fast, plain


@pytest.fixture(scope="module")
def tiny_pair(tiny_model: Path) -> Iterator[Pair]:
    with pair(tiny_model) as servers:
        yield servers


@pytest.fixture(scope="module")
def default_pair(default_model: Path) -> Iterator[Pair]:
    with pair(default_model) as servers:
        yield servers


def complete(server: RunningServer, fields: dict[str, Any]) -> tuple[Any, Any]:
    """Texts with all logprobs, as JSON has them: a double is printed so that it reads back the same."""
    body = {"max_tokens": 48, "logprobs": 3} | fields
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"], answer.json()["usage"]["completion_tokens"]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_tiny_model_says_the_same(tiny_pair: Pair, name: str) -> None:
    fast, plain = tiny_pair
    assert complete(fast, REQUESTS[name]) == complete(plain, REQUESTS[name])


@pytest.mark.parametrize("name", REQUESTS)
def test_the_default_model_says_the_same(default_pair: Pair, name: str) -> None:
    fast, plain = default_pair
    assert complete(fast, REQUESTS[name]) == complete(plain, REQUESTS[name])


def test_what_is_copied_takes_fewer_steps(default_pair: Pair) -> None:
    fast, plain = default_pair
    steps = []
    for server in (fast, plain):
        before = server.metric("headrace_step_seconds_count")
        complete(server, {"prompt": COPY, "temperature": 0, "ignore_eos": True})
        steps.append(server.metric("headrace_step_seconds_count") - before)
    assert steps[0] < 0.5 * steps[1]
    assert fast.metric("headrace_draft_tokens_total") >= fast.metric("headrace_draft_tokens_accepted_total") > 0
    assert plain.metric("headrace_draft_tokens_total") == 0


def test_invariants_held_and_nothing_is_left(tiny_pair: Pair, default_pair: Pair) -> None:
    for server in (*tiny_pair, *default_pair):
        assert server.metric("headrace_kv_invariant_violations_total") == 0
        assert server.metric("headrace_requests_running") == 0
