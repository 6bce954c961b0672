"""Clients whose connections break while engines die and the server leaves: they come back and have every token once."""

import asyncio
import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import httpx
from asking import Body, ask, told
from support import RunningServer, running_server, wait_until

STREAMS = 16
KILLS = 4
WISH = {"x-headrace-resumable": "true"}


def body(place: int, max_tokens: int) -> Body:
    """Greedy, drawn, with logprobs, with stop strings, of several choices."""
    fields: Body = {"prompt": f"{place} sources", "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    if place % 2:
        fields |= {"temperature": 1.0, "seed": place}
    if place % 4 == 2:
        fields |= {"logprobs": 2}
    if place % 8 == 3:
        fields |= {"stop": ["~~", "\u00fc"]}
    return fields


class Fickle:
    """Reads a stream over as many connections as it takes, and leaves each as soon as `is_tired` says so."""

    def __init__(self, server: RunningServer, asked: Body) -> None:
        self.events: list[Body] = []
        self.last = ""
        self.connections = 0
        self._server = server
        self._asked = asked

    async def read(self, patience: random.Random | int) -> None:
        """Until the end, or for so many events, or, at random, over and over again."""
        while not (self.events and self.events[-1].get("done")):
            left = patience if isinstance(patience, int) else patience.randrange(1, 20)
            await self._read_on(left)
            if isinstance(patience, int):
                return

    async def _read_on(self, count: int) -> None:
        self.connections += 1
        async with httpx.AsyncClient(base_url=self._server.url, timeout=60) as client, self._open(client) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    self.last = line.removeprefix("id: ")
                elif line:
                    data = line.removeprefix("data: ")
                    self.events.append({"done": True} if data == "[DONE]" else json.loads(data))
                    count -= 1
                elif not count:
                    return

    def _open(self, client: httpx.AsyncClient) -> object:
        if not self.last:
            return client.stream("POST", "/v1/completions", json=self._asked, headers=WISH)
        path = f"/v1/streams/{self.last.partition(':')[0]}"
        return client.stream("GET", path, headers={"last-event-id": self.last})


async def test_streams_that_break_while_engines_are_killed_say_the_same(tiny_model: Path) -> None:
    bodies = [body(place, 450) for place in range(STREAMS)]
    with running_server("--model", str(tiny_model), "--check-invariants") as server:
        golden = await ask(server.url, bodies)
        readers = [Fickle(server, asked) for asked in bodies]
        reading = [asyncio.create_task(reader.read(random.Random(n))) for n, reader in enumerate(readers)]
        for kill in range(1, KILLS + 1):
            await asyncio.to_thread(wait_until, partial(_has_engine, server, kill), 60)
            enough = sum(len(reader.events) for reader in readers) + STREAMS * 5
            async with asyncio.timeout(60):
                while sum(len(reader.events) for reader in readers) < enough:  # noqa: ASYNC110 - many readers
                    await asyncio.sleep(0.01)
            os.kill(server.engine, signal.SIGKILL)
            assert not all(task.done() for task in reading), f"kill {kill} came too late"
        await asyncio.gather(*reading)
        assert [told(reader.events) for reader in readers] == golden
        assert server.metric("headrace_engine_restarts_total") == KILLS
        resumptions = sum(reader.connections - 1 for reader in readers)
        assert server.metric("headrace_streams_resumed_total") == resumptions > STREAMS * 3
        assert server.metric("headrace_streams_abandoned_total") == 0
        assert server.metric("headrace_kv_invariant_violations_total") == 0


async def test_an_engine_that_dies_while_nobody_reads_goes_on_for_who_comes_back(tiny_model: Path) -> None:
    asked = body(1, 400)
    with running_server("--model", str(tiny_model)) as server:
        (golden,) = await ask(server.url, [asked])
        reader = Fickle(server, asked)
        await reader.read(3)
        os.kill(server.engine, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: server.metric("headrace_engine_restarts_total") == 1)
        await reader.read(10**6)
        assert told(reader.events) == golden
        assert server.metric("headrace_requests_resumed_total") == 1


async def test_a_reader_comes_back_while_the_server_leaves(tiny_model: Path) -> None:
    asked = body(1, 450)
    with running_server("--model", str(tiny_model)) as server:
        (golden,) = await ask(server.url, [asked])
        reader = Fickle(server, asked)
        await reader.read(3)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: server.metric("headrace_requests_running") == 0)
        assert await asyncio.to_thread(_readiness, server) == 503
        await reader.read(10**6)
        assert told(reader.events) == golden
        assert await asyncio.to_thread(server.process.wait, 20) == 0


def _has_engine(server: RunningServer, number: int) -> bool:
    """All before it are known to have died, and it is ready."""
    return server.metric("headrace_engine_restarts_total") == number - 1 and _readiness(server) == 200


def _readiness(server: RunningServer) -> int:
    return httpx.get(f"{server.url}/health/ready").status_code


async def test_a_stream_that_nobody_reads_holds_a_leaving_server_no_longer_than_its_limit(tiny_model: Path) -> None:
    with running_server("--model", str(tiny_model), "--drain-timeout", "0") as server:
        await Fickle(server, body(1, 450)).read(3)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 30) == 0
        assert time.monotonic() - start < 15  # its grace period would be a minute
