"""The commands that answer in the terminal."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from support import command


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), input=stdin, capture_output=True, text=True, timeout=120)


def test_version() -> None:
    assert run("version").stdout == f"headrace {version('headrace')}\n"


def test_generate_prints_the_continuation_and_repeats_it(tiny_model: Path) -> None:
    arguments = (
        "generate",
        "abc",
        "--model",
        str(tiny_model),
        "--max-tokens",
        "12",
        "--temperature",
        "1",
        "--seed",
        "3",
    )
    first, second = run(*arguments), run(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout != "\n"


def test_generate_reads_a_prompt_from_standard_input(tiny_model: Path) -> None:
    options = ("--model", str(tiny_model), "--max-tokens", "12")
    assert run("generate", "-", *options, stdin="abc").stdout == run("generate", "abc", *options).stdout


def test_chat_answers_each_line_and_leaves_at_the_end(tiny_model: Path) -> None:
    ended = run("chat", "--model", str(tiny_model), "--max-tokens", "6", stdin="Hello\n/reset\n/nonsense\nHello\n")
    assert ended.returncode == 0, ended.stderr
    first, rest = ended.stdout.split("/nonsense is not a command", 1)
    assert first.strip()
    assert first.strip() in rest, "after a reset the same question has the same answer"


def test_a_prompt_that_is_too_long_is_one_line(tiny_model: Path) -> None:
    ended = run("generate", "x" * 600, "--model", str(tiny_model))
    assert ended.returncode == 1
    assert "maximum context length is 512 tokens" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_plan_prints_the_sum_without_loading(tiny_model: Path) -> None:
    ended = run("plan", str(tiny_model))
    assert ended.returncode == 0, ended.stderr
    assert [line.split("  ")[0] for line in ended.stdout.splitlines()] == ["weights", "largest step", "KV cache", "sum"]


def test_plan_refuses_a_cache_that_does_not_fit(tiny_model: Path) -> None:
    ended = run("plan", str(tiny_model), "--kv-memory", "100000")
    assert ended.returncode == 1
    assert "kv-memory" in ended.stderr


@pytest.mark.parametrize("name", ["serve", "chat", "generate", "plan", "bench"])
def test_help_states_defaults(name: str) -> None:
    ended = run(name, "--help")
    assert ended.returncode == 0
    assert "default" in ended.stdout
