"""Recorded exchanges are answered again by the same model to the last bit, and another model is found out."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import Answers, ask
from support import command, running_server, wait_until, write_tiny_model

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "greedy", "temperature": 0, "logprobs": 2}),
    ("/v1/completions", {"prompt": ["drawn", "twice"], "n": 2, "stop": "z", "echo": True, "logprobs": 1}),
    ("/v1/completions", {"prompt": [5, 6, 7], "stream": True, "top_p": 0.9, "model": "recorded"}),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 12, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 12, "logprobs": True, "top_logprobs": 3, "seed": -4}),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 12, "return_token_ids": True, "frequency_penalty": 1}),
]


@pytest.fixture(scope="module")
def recorded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server has recorded of all requests, of one that its client left and of one that was refused."""
    file = tmp_path_factory.mktemp("record") / "file.jsonl"
    options = ("--model", str(tiny_model), "--served-model-name", "recorded", "--record", str(file))
    with running_server(*options) as server:
        for path, body in REQUESTS:
            assert httpx.post(server.url + path, json=body, timeout=60).status_code == 200
        assert httpx.post(f"{server.url}/v1/completions", json={}).status_code == 400
        asyncio.run(_leave(server.url))
    return file


async def _leave(url: str) -> None:
    answers = Answers(url, [{"prompt": "never mind", "max_tokens": 400, "ignore_eos": True, "stream": True}])
    asking = asyncio.create_task(answers.gather())
    await answers.arrived(lambda answers: answers.count > 3)
    asking.cancel()
    await asyncio.wait([asking])


@pytest.fixture(scope="module")
def url(tiny_model: Path) -> Iterator[str]:
    with running_server("--model", str(tiny_model), "--api-key", "secret") as server:
        yield server.url


def replay(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command("replay", str(file), *arguments), capture_output=True, text=True, timeout=120)


def counts(output: str) -> dict[str, int]:
    rows = output.split("exchanges\n")[1].splitlines()
    return {row[:24].strip(): int(row[24:]) for row in rows if not row.startswith("recorded on")}


def test_each_line_holds_what_was_asked_and_what_was_told(recorded: Path) -> None:
    lines = [json.loads(line) for line in recorded.read_text().splitlines()]
    assert [line["end"] in ("stop", "length") for line in lines] == [True] * len(REQUESTS) + [False]
    assert lines[-1]["end"] == "disconnect"
    for (path, body), line in zip(REQUESTS, lines, strict=False):
        assert line["path"] == path
        assert line["request"] == {"seed": line["request"]["seed"], **body}
        assert f'seed="{line["request"]["seed"]}"' in line["receipt"]
        for choice in line["choices"]:
            assert (choice["logprobs"] is not None) == ("logprobs" in body)
            assert all(0 <= token < 259 for token in choice["token_ids"])
    assert [len(line["choices"]) for line in lines] == [1, 4, 1, 1, 1, 1, 1]


def test_the_same_model_answers_the_same(recorded: Path, url: str) -> None:
    ended = replay(recorded, "--check", "--url", url, "--api-key", "secret")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    right = {"equal": len(REQUESTS), "different": 0, "not answered": 0, "failed or cancelled then": 1, "no exchange": 0}
    assert counts(ended.stdout) == right
    was, now = ended.stdout.splitlines()[-1].removeprefix("recorded on ").split(", replayed on ")
    assert was == now


def test_a_single_token_or_bit_of_a_logprob_that_differs_is_named(recorded: Path, url: str, tmp_path: Path) -> None:
    first, second, *_ = (json.loads(line) for line in recorded.read_text().splitlines())
    first["choices"][0]["logprobs"][3] += 1e-12
    second["choices"][2]["token_ids"][1] ^= 1
    forged = tmp_path / "forged.jsonl"
    forged.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n{}\n")
    for check in ((), ("--check",)):
        ended = replay(forged, *check, "--url", url, "--api-key", "secret")
        assert ended.returncode == len(check)
        assert f"line 1, {first['id']}, choice 0, position 3: token" in ended.stdout
        assert " in both, logprob -" in ended.stdout
        assert f"line 2, {second['id']}, choice 2, position 1: token" in ended.stdout
        (line,) = [line for line in ended.stdout.splitlines() if line.startswith("line 2")]
        assert float(line.rpartition("logit gap ")[2]) > 0
        assert (counts(ended.stdout)["different"], counts(ended.stdout)["no exchange"]) == (2, 1)


def test_the_gap_is_that_of_the_logits(recorded: Path, url: str, tmp_path: Path) -> None:
    """Forged to be the second likeliest at some place: the answer itself has told how far below the best that lies."""
    exchange = json.loads(recorded.read_text().splitlines()[0])
    headers = {"authorization": "Bearer secret"}
    _, body = REQUESTS[0]
    answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60).json()
    tops = [list(top.items()) for top in answer["choices"][0]["logprobs"]["top_logprobs"]]
    place = next(place for place, (_, (other, _)) in enumerate(tops) if len(other) == 1 and other.isalnum())
    (_, likely), (other, less_likely) = tops[place]
    (id,) = httpx.post(f"{url}/tokenize", json={"prompt": other}, headers=headers).json()["tokens"]
    exchange["choices"][0]["token_ids"][place] = id
    forged = tmp_path / "forged.jsonl"
    forged.write_text(json.dumps(exchange))
    line = replay(forged, "--url", url, "--api-key", "secret").stdout.splitlines()[0]
    assert f"position {place}: " in line
    assert float(line.rpartition("logit gap ")[2]) == pytest.approx(likely - less_likely, rel=1e-2)


def test_another_model_is_found_out_by_a_server_of_its_own(recorded: Path, tmp_path: Path) -> None:
    ended = replay(recorded, str(write_tiny_model(tmp_path / "other", seed=1)), "--check")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert counts(ended.stdout)["different"] == len(REQUESTS)
    assert ended.stdout.count("logit gap") >= len(REQUESTS) / 2
    was, now = ended.stdout.splitlines()[-1].removeprefix("recorded on ").split(", replayed on ")
    assert was != now


def test_what_cannot_be_replayed_is_one_line(recorded: Path, tmp_path: Path) -> None:
    assert "No such file" in replay(tmp_path / "missing.jsonl").stderr
    ended = replay(recorded, "--url", "http://127.0.0.1:9", "--threads", "1")
    assert (ended.returncode, "--threads" in ended.stderr) == (2, True)
    ended = replay(recorded, str(tmp_path / "nothing"))
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    ended = replay(recorded, "--url", "http://127.0.0.1:9")
    assert ended.returncode == 1
    assert counts(ended.stdout)["not answered"] == len(REQUESTS)
    assert replay(recorded, "--url", "nowhere").returncode == 2


async def test_a_full_disk_fails_no_request(tiny_model: Path) -> None:
    with running_server("--model", str(tiny_model), "--record", "/dev/full") as server:
        answers = await ask(server.url, [{"prompt": "Hi", "stream": stream} for stream in (True, False)])
        assert all(not answer["errors"] and answer["text"] for answer in answers)
        wait_until(lambda: server.metric("headrace_exchanges_unrecorded_total") == 2)
