"""Many requests at a time to a running server, and all that can be told from their answers."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx

Body = dict[str, Any]


class Answers:
    """What has come so far of requests that run side by side."""

    def __init__(self, url: str, bodies: list[Body], headers: dict[str, str] | None = None) -> None:
        self.events: list[list[Body]] = [[] for _ in bodies]  # of each streamed one; of the others, the one answer
        self.headers: list[httpx.Headers] = [httpx.Headers() for _ in bodies]
        self._url = url
        self._bodies = bodies
        self._headers = headers
        self._change = asyncio.Event()
        self._are_all_here = False

    @property
    def count(self) -> int:
        return sum(map(len, self.events))

    async def arrived(self, is_enough: Callable[["Answers"], bool]) -> None:
        while not is_enough(self):
            assert not self._are_all_here, "all are answered, and still it has not come true"
            self._change.clear()
            await asyncio.wait_for(self._change.wait(), 60)

    async def gather(self) -> list[list[Body]]:
        """Asks; returns when all are answered."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=None, limits=limits, headers=self._headers) as client:
            await asyncio.gather(*(self._ask(client, place, body) for place, body in enumerate(self._bodies)))
        self._are_all_here = True
        self._change.set()
        return self.events

    async def _ask(self, client: httpx.AsyncClient, place: int, body: Body) -> None:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            self.headers[place] = answer.headers
            try:
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        self._note(place, {"done": True})
                    elif line and not line.startswith(":"):  # a comment keeps a quiet stream alive
                        self._note(place, json.loads(line.removeprefix("data: ")) | {"status": answer.status_code})
            except httpx.RemoteProtocolError:  # closed without its end
                self._note(place, {"cut": True})

    def _note(self, place: int, event: Body) -> None:
        self.events[place].append(event)
        self._change.set()


def told(events: list[Body]) -> Body:
    """A whole answer, however it was cut into events; whatever belongs to one run only is left out."""
    choices = [choice for event in events for choice in event.get("choices", [])]
    logprobs = [choice["logprobs"] for choice in choices if choice.get("logprobs")]
    return {
        "text": "".join(choice["text"] for choice in choices),
        "logprobs": {key: [entry for part in logprobs for entry in part[key]] for key in (logprobs or [{}])[0]},
        "finish_reason": [choice["finish_reason"] for choice in choices if choice["finish_reason"]],
        "usage": [event["usage"] for event in events if event.get("usage")],
        "done": [True for event in events if event.get("done")],
        "errors": [event["error"]["code"] for event in events if event.get("error")],
    }


async def ask(url: str, bodies: list[Body], headers: dict[str, str] | None = None) -> list[Body]:
    return [told(events) for events in await Answers(url, bodies, headers).gather()]
