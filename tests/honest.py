"""Honest streams beside whatever else a server is asked: what they are told must be the same to the last bit."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
from support import patient_client

STREAMS = [
    {
        "prompt": f"{'Once upon a time ' * (number % 3)}there were {number}",
        "max_tokens": 60 + number,
        "temperature": number % 3 / 2,
        "seed": number,
        "logprobs": 1,
        "ignore_eos": True,
        "stream": True,
    }
    for number in range(32)
]
Told = list[list[dict[str, Any]]]


async def _told(http: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry a token, however the tokens were gathered into events."""
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        events = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
    assert events.pop() == "[DONE]"
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return [
        {"text": "".join(choice["text"] for choice in choices), "end": choices[-1]["finish_reason"]},
        *(
            {"token": token, "logprob": logprob}
            for choice in choices
            if choice["logprobs"]
            for token, logprob in zip(choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"], strict=True)
        ),
    ]


async def _all_told(url: str, key: str) -> Told:
    async with patient_client(url) as http:
        http.headers.update({"authorization": f"Bearer {key}"} if key else {})
        return list(await asyncio.gather(*(_told(http, body) for body in STREAMS)))


def alone(url: str, key: str = "") -> Told:
    return asyncio.run(_all_told(url, key))


def beside(url: str, disturb: Callable[[], None], key: str = "") -> list[Told]:
    """All streams over and over again, until `disturb`, which runs in a thread, is done; at least once."""

    async def run() -> list[Told]:
        disturbance = asyncio.create_task(asyncio.to_thread(disturb))
        rounds = [await _all_told(url, key)]
        while not disturbance.done():
            rounds.append(await _all_told(url, key))
        await disturbance
        return rounds

    return asyncio.run(run())
