"""`headrace verify`: passes where answers are exact, and names the first difference where they are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import command

VERIFY_UNEXACT = (sys.executable, "-P", str(Path(__file__).with_name("verify_unexact.py")))
WAYS = [
    "alone",
    "in a batch, cold cache",
    "in a batch, warm cache",
    "speculating",
    "engine killed",
    "in small chunks",
    "preempted",
]
# fault -> what it does not touch, and what is to be said of the rest
FAULTS = {
    "batch": ({"alone", "speculating", "in small chunks", "preempted"}, "in both, logprob -", "logprob gap "),
    "resume": (set(WAYS) - {"engine killed"}, " instead of token ", "logit gap "),
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=os.environ | environment)


def results(output: str) -> dict[str, str]:
    """What stands in the last column, by way."""
    head, *rows, _ = output.splitlines()
    return {row[: head.index("evidence")].strip(): row[head.index("result") :] for row in rows}


def test_a_tiny_model_passes(tiny_model: Path) -> None:
    ended = run(*command("verify", str(tiny_model)))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    first, *others = WAYS
    assert results(ended.stdout) == {first: "what the others are held against"} | dict.fromkeys(others, "as alone")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_is_and_named(tiny_model: Path, fault: str) -> None:
    ended = run(*VERIFY_UNEXACT, str(tiny_model), FAULT=fault)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    untouched, *words = FAULTS[fault]
    assert {way for way, result in results(ended.stdout).items() if "position" not in result} == untouched
    for way, result in results(ended.stdout).items():
        if way not in untouched:
            assert all(part in result for part in words)
    assert f"{len(WAYS) - len(untouched)} of {len(WAYS)} ways differ" in ended.stdout


def test_a_model_that_cannot_be_run_and_an_option_that_verify_varies_itself_are_refused(tmp_path: Path) -> None:
    assert run(*command("verify", str(tmp_path / "nothing"))).returncode == 1
    assert run(*command("verify", "--step-tokens", "8")).returncode == 2
