"""The whole server, as its clients meet it: a real process, real sockets, a tiny model."""

import asyncio
import json
import random
import socket
from pathlib import Path

import httpx
import openai
import pytest
from support import RunningServer, running_server, wait_until

BODY = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 1.0, "ignore_eos": True}


def client_of(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def complete(server: RunningServer, **fields: object) -> dict[str, object]:
    answer = httpx.post(f"{server.url}/v1/completions", json=BODY | fields, timeout=60)
    assert answer.status_code == 200, answer.text
    choice: dict[str, object] = answer.json()["choices"][0]
    return choice


def streamed(server: RunningServer, **fields: object) -> list[dict[str, object]]:
    """The chunks of a streamed completion, which must end with [DONE]."""
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json=BODY | fields | {"stream": True}, timeout=60
    ) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def used_blocks(server: RunningServer) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith('headrace_kv_blocks{state="used"}'))


def test_an_openai_client_completes_chats_and_streams(tiny_server: RunningServer) -> None:
    client = client_of(tiny_server)
    model = client.models.list().data[0].id
    completion = client.completions.create(model=model, prompt="abc", max_tokens=8, temperature=0)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 3
    messages = [{"role": "user", "content": "Hello"}]
    chat = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)
    stream = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == chat.choices[0].message.content


@pytest.mark.parametrize("seed", range(20))
def test_streamed_bytes_of_any_kind_make_the_unstreamed_text(tiny_server: RunningServer, seed: int) -> None:
    """A random model of bytes writes broken UTF-8 of every sort."""
    whole = complete(tiny_server, seed=seed, stop=["e", "\u00fc"])
    chunks = streamed(tiny_server, seed=seed, stop=["e", "\u00fc"])
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]


@pytest.mark.parametrize(
    "text", ["naïve", "漢字", "👩‍👩‍👧‍👦", "e\u0301", "\U0001f1eb\U0001f1f7", "\U000e0041\U0010fffd"]
)
def test_echoed_text_of_every_plane_arrives_whole(tiny_server: RunningServer, text: str) -> None:
    """Text of every plane that comes token by token is in `tests/text`, where no model must be made to write it."""
    whole = complete(tiny_server, prompt=text, echo=True, max_tokens=1, seed=1)
    chunks = streamed(tiny_server, prompt=text, echo=True, max_tokens=1, seed=1)
    assert str(whole["text"]).startswith(text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]


def test_the_same_seed_gives_the_same_text_and_another_seed_another(tiny_server: RunningServer) -> None:
    first, again, other = (complete(tiny_server, seed=seed)["text"] for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_choices_are_the_requests_with_the_following_seeds(tiny_server: RunningServer) -> None:
    answer = httpx.post(f"{tiny_server.url}/v1/completions", json=BODY | {"n": 3, "seed": 5}).json()
    assert [choice["text"] for choice in answer["choices"]] == [
        complete(tiny_server, seed=seed)["text"] for seed in (5, 6, 7)
    ]


def raw_request(server: RunningServer, **fields: object) -> socket.socket:
    """A request on a socket of its own, for leaving at will."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(BODY | fields).encode()
    connection = socket.create_connection((host, int(port)))
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


LONG = {"prompt": "x" * 200, "max_tokens": 300}


def departures_and_steps(server: RunningServer) -> tuple[float, float]:
    """Both as of one moment."""
    text = httpx.get(f"{server.url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return float(values["headrace_client_disconnects_total"]), float(values["headrace_step_seconds_count"])


@pytest.mark.parametrize("is_streaming", [True, False])
def test_a_client_that_leaves_frees_its_blocks_within_two_steps(tiny_server: RunningServer, is_streaming: bool) -> None:
    left, _ = departures_and_steps(tiny_server)
    generated = tiny_server.metric("headrace_generation_tokens_total")
    connection = raw_request(tiny_server, stream=is_streaming, **LONG)
    wait_until(lambda: used_blocks(tiny_server) > 0)
    connection.close()
    seen = [departures_and_steps(tiny_server)]
    wait_until(lambda: seen.append(departures_and_steps(tiny_server)) or seen[-1][0] > left)
    wait_until(lambda: used_blocks(tiny_server) == 0)
    departures, steps = departures_and_steps(tiny_server)
    assert departures == left + 1
    assert steps - seen[-1][1] <= 2
    assert tiny_server.metric("headrace_generation_tokens_total") - generated < LONG["max_tokens"], "it ran to its end"


def test_clients_that_leave_the_queue_or_their_prefill_free_what_they_had(tiny_model: Path) -> None:
    with running_server(
        "--model", str(tiny_model), "--max-sequences", "1", "--step-tokens", "16", "--check-invariants"
    ) as server:
        busy = [raw_request(server, **LONG) for _ in range(3)]  # one prefills in chunks, two are queued
        wait_until(lambda: server.metric("headrace_requests_waiting") == 2)
        for connection in reversed(busy):
            connection.close()
        wait_until(lambda: used_blocks(server) == 0 and server.metric("headrace_requests_waiting") == 0)
        assert server.metric("headrace_requests_running") == 0
        assert server.metric("headrace_kv_invariant_violations_total") == 0


async def _stream_and_perhaps_leave(server: RunningServer, number: int) -> None:
    rng = random.Random(number)
    fields = BODY | {"prompt": "y" * rng.randrange(1, 200), "max_tokens": 100, "stream": True, "seed": number}
    async with (
        httpx.AsyncClient(timeout=120) as client,
        client.stream("POST", f"{server.url}/v1/completions", json=fields) as answer,
    ):
        patience = rng.randrange(1, 60) if number % 2 else 10**6
        async for line in answer.aiter_lines():
            patience -= bool(line)
            if not patience:
                return
    assert line == "" or line == "data: [DONE]"


def test_sixty_four_streams_with_random_departures_leave_every_block_free(tiny_model: Path) -> None:
    """The pool is too small for all of them, so they are preempted as well."""
    with running_server(
        "--model", str(tiny_model), "--kv-memory", "0.0007", "--max-queue", "64", "--check-invariants"
    ) as server:

        async def storm() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(64):
                    group.create_task(_stream_and_perhaps_leave(server, number))

        asyncio.run(storm())
        wait_until(lambda: used_blocks(server) == 0)
        assert server.metric("headrace_kv_invariant_violations_total") == 0
        assert server.metric("headrace_preemptions_total") > 0
        ended = server.metric("headrace_requests_finished_total")
        assert ended == server.metric("headrace_requests_accepted_total") == 64
