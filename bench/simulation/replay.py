"""The same traffic against real servers on this machine, each with a thread of its own, routed by the same router."""

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import uvloop

from bench.servers import Command, Server, running
from bench.simulation.cluster import Router
from bench.simulation.traffic import Arrival, Traffic
from server.bench.client import Client
from server.bench.connection import Address
from server.bench.load import send_on_time
from server.bench.record import Record, Request
from server.config import EngineOptions

TIMEOUT_S = 600.0


def command(options: EngineOptions) -> Command:
    """A server whose engine is as in the simulation: without drafts, whose use depends on what a text says."""
    program = str(Path(sys.executable).with_name("headrace"))
    engine = ["--model", options.model, "--threads", str(options.threads), "--kv-memory", str(options.kv_memory)]
    return Command((program, "serve", *engine, "--no-speculation", "--no-spare-engine"), "/health/ready")


def replay(servers: int, options: EngineOptions, traffic: Traffic, router: Router) -> list[Record]:
    """What the load's client saw, in the order of arrival. Raises NoStart; ends the program where a request fails."""
    with _running(servers, options) as started, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        records = runner.run(ask_all([server.url for server in started], traffic, router))
    for record in records:
        if record.failure is not None:
            raise SystemExit(f"bench.simulation: {record.failure.kind}: {record.failure.message}")
    return records


@contextmanager
def _running(servers: int, options: EngineOptions) -> Iterator[list[Server]]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        logs = [Path(folder, f"{place}.log") for place in range(servers)]
        yield [stack.enter_context(running(command(options), log)) for log in logs]


async def ask_all(urls: list[str], traffic: Traffic, router: Router) -> list[Record]:
    """Each arrival is routed when it is due, as that depends on who is through by then."""
    clients = [Client(Address.parse(url), TIMEOUT_S) for url in urls]
    model = (await clients[0].fetch("GET", "/v1/models"))["data"][0]["id"]
    waiting = iter(arrivals := [*traffic])

    async def ask(request: Request) -> Record:
        arrival = next(waiting)
        record = await clients[router.send(arrival)].stream(request, lambda: router.begun(arrival.id))
        router.through(arrival.id)
        return record

    schedule = [(arrival.at, _request(arrival, model)) for arrival in arrivals]
    try:
        return await send_on_time(schedule, ask)
    finally:
        for client in clients:
            client.close()


def _request(arrival: Arrival, model: str) -> Request:
    body = {
        "model": model,
        "prompt": arrival.prompt,
        "max_tokens": arrival.output_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Request("/v1/completions", msgspec.json.encode(body), arrival.output_tokens)
