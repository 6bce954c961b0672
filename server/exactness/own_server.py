"""A server that a command starts for itself: `headrace serve` on a free port, ended with the command."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.bench.client import Client, ServerError
from server.bench.connection import Address
from server.config import EngineOptions, options_of

_SERVE = (sys.executable, "-P", "-m", "server.cli", "serve")
# What a server ignored when the exchanges were recorded, this one ignores too.
_MANNERS = ("--port", "0", "--lenient", "--drain-delay", "0", "--no-spare-engine", "--log-format", "json")
_POLL_S = 0.1


class NoServer(Exception):
    """It has ended before it could be asked; why, it has said itself."""


@asynccontextmanager
async def own_server(options: EngineOptions) -> AsyncIterator[Address]:
    """Yields when it is ready. Raises NoServer."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    command = (*_SERVE, *_MANNERS, *_flags(options))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=environment, start_new_session=True)
    assert process.stdout is not None, "piped"
    reading = None
    try:
        address = await _announced(process.stdout)
        reading = asyncio.create_task(_read_on(process.stdout))
        await _ready(address, process)
        yield address
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        if reading is not None:
            await reading


def _flags(options: EngineOptions) -> list[str]:
    flags = []
    for option in options_of(EngineOptions):
        value = getattr(options, option.name)
        if option.is_flag:
            flags.append(option.flag if value else option.flag.replace("--", "--no-", 1))
        elif value is not None:
            flags += [option.flag, str(value)]
    return flags


async def _announced(output: asyncio.StreamReader) -> Address:
    async for line in output:
        event = json.loads(line)
        if event["event"] == "listening":
            return Address.parse(event["url"])
    raise NoServer


async def _ready(address: Address, process: Process) -> None:
    client = Client(address, timeout_s=10)
    try:
        while process.returncode is None:
            try:
                await client.fetch("GET", "/health/ready")
                return
            except ServerError:
                await asyncio.sleep(_POLL_S)
    finally:
        client.close()
    raise NoServer


async def _read_on(output: asyncio.StreamReader) -> None:
    """Lets it log: it would wait for room in the pipe."""
    async for _ in output:
        pass
