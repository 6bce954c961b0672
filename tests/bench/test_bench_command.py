"""`headrace bench` as it is called: options in, tables and files out."""

import argparse
import asyncio
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from xml.etree import ElementTree

import pytest

from server.bench.main import add_arguments, plan_of, run
from server.bench.session import Session

PROGRAM = """
import argparse, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background hands down that it is ignored
from server.bench.main import add_arguments, run
parser = argparse.ArgumentParser()
add_arguments(parser)
sys.exit(run(parser.parse_args()))
"""


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="headrace bench")
    add_arguments(parser)
    return parser.parse_args(arguments)


async def bench(*arguments: object) -> int:
    return await asyncio.to_thread(run, parse(*map(str, arguments)))


async def test_a_closed_loop_reports_every_concurrency(fake, tmp_path, capsys) -> None:
    file = tmp_path / "out.json"
    status = await bench(
        *("--url", fake.url, "--concurrency", "1,4", "--requests", 8, "--output-tokens", 5, "--prompt-tokens", 12),
        *("--json", file, "--slo", "ttft=30"),
    )
    assert status == 0
    content = json.loads(file.read_text())
    assert [run["load"] for run in content["runs"]] == ["1 at once", "4 at once"]
    for found in content["runs"]:
        figures = found["figures"]
        assert (figures["answered"], figures["output_tokens"], figures["prompt_tokens"]) == (8, 40, 96)
        assert figures["good_requests_per_s"] == figures["requests_per_s"]
        assert [len(request["chunks"]) for request in found["requests"]] == [5] * 8
    assert len(fake.bodies) == 2 * (8 + 2)  # with two dropped to warm up before each
    assert fake.most_in_flight <= 4
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("fake-model", "token ids", "1 at once", "4 at once", "TTFT", "TPOT", "p99"))


async def test_the_request_says_what_the_options_say(fake) -> None:
    common = ("--url", fake.url, "--concurrency", 1, "--requests", 1, "--warmup", 0, "--output-tokens", 2)
    await bench(*common)
    await bench(*common, "--endpoint", "chat", "--temperature", 0.5, "--ignore-eos", "no", "--body", '{"min_p": 0.1}')
    plain, chat = fake.bodies
    assert len(plain.pop("prompt")) == 128
    assert plain == {
        "model": "fake-model",
        "max_tokens": 2,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    assert chat["messages"][0]["role"] == "user"
    assert (chat["temperature"], chat["min_p"], "ignore_eos" in chat) == (0.5, 0.1, False)
    assert isinstance(chat["seed"], int)


async def test_no_prompt_is_asked_twice_within_a_benchmark(fake) -> None:
    await bench("--url", fake.url, "--concurrency", "1,2", "--requests", 6, "--rounds", 2, "--output-tokens", 1)
    prompts = [tuple(body["prompt"]) for body in fake.bodies]
    assert len(prompts) == len(set(prompts)) == 2 * 2 * (6 + 2)


async def test_an_open_loop_sends_at_its_rate(fake, tmp_path) -> None:
    file = tmp_path / "out.json"
    common = ("--url", fake.url, "--output-tokens", 2, "--json", file)
    assert await bench(*common, "--rate", "100,200", "--duration", 0.5) == 0
    slow, fast = json.loads(file.read_text())["runs"]
    assert (slow["load"], fast["load"]) == ("100/s", "200/s")
    assert 20 < slow["figures"]["answered"] < fast["figures"]["answered"] < 170
    early = 0.002  # the event loop's timers count in milliseconds
    assert all(request["due"] < 0.6 and request["start"] > request["due"] - early for request in fast["requests"])


async def test_two_servers_are_asked_the_same_in_turn(fake, second_fake, tmp_path, capsys) -> None:
    json_file, svg_file = tmp_path / "out.json", tmp_path / "out.svg"
    common = ("--concurrency", "1,2", "--requests", 4, "--output-tokens", 3, "--rounds", 3, "--warmup", 1)
    files = ("--json", json_file, "--svg", svg_file)
    assert await bench("--url", fake.url, "--versus", second_fake.url, *common, *files) == 0
    asked = [sorted(json.dumps(body) for body in server.bodies) for server in (fake, second_fake)]
    assert asked[0] == asked[1]
    content = json.loads(json_file.read_text())
    assert [(found["server"], found["load"], found["round"]) for found in content["runs"]] == [
        (server, load, number) for load in ("1 at once", "2 at once") for number in (1, 2, 3) for server in "AB"
    ]
    ttft = next(row for row in content["medians"] if row["figure"] == "TTFT p50, ms")
    assert ttft["ratio"] == pytest.approx(sorted(ttft["values"]["A"])[1] / sorted(ttft["values"]["B"])[1])
    assert ttft["ratio"] < 1  # B waits 20 ms before each answer
    assert "A / B" in capsys.readouterr().out
    svg = ElementTree.fromstring(svg_file.read_text())
    curves = [part.get("class") for part in svg.iter("{http://www.w3.org/2000/svg}polyline")]
    assert sorted(map(str, curves)) == ["curve A", "curve A", "curve A rare", "curve B", "curve B", "curve B rare"]


async def test_failures_are_reported_and_a_run_without_answers_fails_the_command(fake, capsys) -> None:
    fake.mode = "503"
    assert await bench("--url", fake.url, "--concurrency", 2, "--requests", 3, "--prompt-kind", "words") == 1
    shown = capsys.readouterr().out
    assert "http 503" in shown
    assert "queue is full" in shown


async def test_doubts_are_said(fake, capsys) -> None:
    fake.mode = "no usage"
    await bench("--url", fake.url, "--concurrency", 2, "--requests", 2, "--output-tokens", 3)
    shown = capsys.readouterr().out
    assert "note: A, 2 at once: 2 answers came without usage" in shown
    assert "too few requests for a plateau" in shown


async def test_a_server_that_is_not_there_is_one_line(capsys) -> None:
    assert await bench("--url", "http://127.0.0.1:1") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("headrace bench: http://127.0.0.1:1: GET /v1/models: refused:")
    assert captured.err.count("\n") == 1


async def test_the_key_stands_in_no_output(fake, tmp_path, capsys) -> None:
    file = tmp_path / "out.json"
    common = ("--concurrency", 1, "--requests", 1, "--output-tokens", 1)
    await bench("--url", fake.url, "--api-key", "hidden-key", "--json", file, *common)
    assert "hidden-key" in fake.headers[-1]
    assert "hidden-key" not in file.read_text() + capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--url", "localhost"], "--url"),
        (["--concurrency", "0"], "--concurrency"),
        (["--concurrency", "1,x"], "--concurrency"),
        (["--rate", "-1"], "--rate"),
        (["--rate", "nan"], "--rate"),
        (["--prompt-tokens", "9:3"], "--prompt-tokens"),
        (["--slo", "speed=1"], "--slo"),
        (["--body", "[]"], "--body"),
        (["--body", '{"stream": false}'], "stream: the benchmark sets this itself"),
        (["--json", "/nowhere/x.json"], "--json"),
        (["--endpoint", "embeddings"], "--endpoint"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rate", "1", "--concurrency", "2"], "--concurrency"),
        (["--rate", "1", "--requests", "2"], "--requests"),
        (["--duration", "3"], "--duration"),
        (["--prefix-groups", "2"], "--prefix-groups"),
        (["--versus-api-key", "k"], "--versus-api-key"),
        (["--endpoint", "chat", "--prompt-kind", "ids"], "--prompt-kind"),
        (["--workload", "/nowhere/x.jsonl"], "/nowhere/x.jsonl"),
        (["--api-key", "a\nb"], "API key"),
    ],
)
def test_options_that_contradict_each_other_are_named(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(parse(*arguments)) == 2
    assert complaint in capsys.readouterr().err


def test_prompts_in_text_are_asked_as_text(tmp_path: Path) -> None:
    file = tmp_path / "work.jsonl"
    file.write_text('{"prompt": "Say something."}\n')
    assert plan_of(parse("--workload", str(file))).prompt_kind == "words"
    with pytest.raises(ValueError, match="--prompt-kind ids"):
        plan_of(parse("--workload", str(file), "--prompt-kind", "ids"))


def test_every_option_can_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_BENCH_PROMPT_TOKENS", "3:4")
    monkeypatch.setenv("HEADRACE_BENCH_API_KEY", "hidden-key")
    monkeypatch.setenv("HEADRACE_BENCH_IGNORE_EOS", "no")
    plan = plan_of(parse())
    assert (plan.workload.prompt.high, plan.servers[0].api_key, plan.ignore_eos) == (4, "hidden-key", False)
    assert plan_of(parse("--prompt-tokens", "9")).workload.prompt.low == 9
    with pytest.raises(SystemExit):
        parse("--help")
    assert "hidden-key" not in capsys.readouterr().out
    monkeypatch.setenv("HEADRACE_BENCH_IGNORE_EOS", "perhaps")
    with pytest.raises(SystemExit):
        parse()
    assert "--ignore-eos: 'perhaps' is none of yes, no" in capsys.readouterr().err


def test_defaults_are_those_that_the_help_tells(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(parse())
    assert [(load.level, load.requests) for load in plan.loads] == [(1, 16), (8, 32), (32, 128)]  # type: ignore[union-attr]
    assert (plan.rounds, plan.warmup, plan.ignore_eos, plan.temperature) == (1, 2, True, 0.0)
    assert plan_of(parse("--versus", "http://x")).rounds == 3
    assert Session(plan).runs == []


async def test_progress_is_shown_on_a_terminal_and_an_interrupt_keeps_what_was_finished(fake) -> None:
    terminal, side = pty.openpty()
    ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    fake.silent_after = 2 + 3  # the warm-up and the requests of the first load
    arguments = ["--url", fake.url, "--concurrency", "1,2", "--requests", "3", "--output-tokens", "2"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *arguments, stdout=subprocess.PIPE, stderr=side, cwd="/"
    )
    os.close(side)
    try:
        async with asyncio.timeout(30):
            await fake.fell_silent.wait()
            process.send_signal(signal.SIGINT)
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert process.returncode == 130
    assert "1 at once" in out.decode()
    assert "2 at once" not in out.decode()
    assert "A 1 at once, round 1" in shown
    assert "interrupted" in shown


def test_the_load_generator_needs_neither_torch_nor_fastapi() -> None:
    check = "import sys, server.bench.main; print({'torch', 'fastapi', 'model'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd="/").stdout == "set()\n"
