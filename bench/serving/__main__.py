"""What serving costs beside the kernels: starting, idling, the API process, long contexts, a crowded machine.

Each part starts servers of its own with the default model. Stop everything else on the machine first.

examples:
  python -P -m bench.serving                    # everything
  python -P -m bench.serving start contexts     # some of it
"""

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from tqdm import tqdm

from bench.servers import Command, Server, running, starting, tree, wait
from server.bench.client import Client
from server.bench.connection import Address
from server.bench.record import Record, Request

HEADRACE = (str(Path(sys.executable).with_name("headrace")), "serve")
TIMEOUT_S = 600.0
STARTS = 5
SETTLED_S, IDLE_S = 15.0, 30.0  # the spare engine has imported torch by then
USERS, ANSWER = 64, 128
CONTEXTS = (128, 1024, 4096, 8000)
DECODED = 64
STREAMS = 4


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -P -m bench.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    for part in tqdm(parts, unit="part"):
        tqdm.write(PARTS[part]())
    return 0


def start() -> str:
    """From the command to the open port and to readiness, beside what importing torch takes."""
    ports, readies, imports = [], [], []
    for _ in range(STARTS):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        imports.append(time.monotonic() - began)
        began = time.monotonic()
        with tempfile.NamedTemporaryFile() as log, starting(_command(), Path(log.name)) as server:
            wait(server, "/health/startup", Path(log.name), {200, 503})
            ports.append(time.monotonic() - began)
            wait(server, "/health/ready", Path(log.name))
            readies.append(time.monotonic() - began)
    port, ready, torch = map(statistics.median, (ports, readies, imports))
    return f"start: port open after {port:.2f} s, ready after {ready:.2f} s; `import torch` takes {torch:.2f} s"


def idle() -> str:
    """Processor time while nobody asks."""
    with _serving() as server:
        time.sleep(SETTLED_S)
        before = _cpu_s(server)
        time.sleep(IDLE_S)
        used = (_cpu_s(server) - before) / IDLE_S
    return f"idle: {used:.2%} of one core, API process and engine together"


def api() -> str:
    """What the API process takes for a token of many streams."""
    with _serving("--max-sequences", str(USERS)) as server:
        before = _own_cpu_s(server.process.pid)
        records = _ask(server, [_fields(64, ANSWER, seed) for seed in range(2 * USERS)], USERS)
        used = _own_cpu_s(server.process.pid) - before
    tokens = sum(record.output_tokens for record in records)
    rate = tokens / (max(record.end for record in records) - min(record.start for record in records))
    return f"api: {used / tokens * 1000:.1%} of one core at 1,000 tokens/s ({USERS} streams, measured at {rate:.0f})"


def contexts() -> str:
    """Time per token behind prompts of several lengths, without drafts."""
    lines = []
    with _serving("--no-speculation") as server:
        for context in CONTEXTS:
            (record,) = _ask(server, [_fields(context, DECODED, context)], 1)
            assert record.tpot is not None
            rate = context / record.ttft
            lines.append(f"  {context:5} tokens: {record.tpot * 1000:.2f} ms a token, read at {rate:.0f} tokens/s")
    return "\n".join(["contexts:", *lines])


def prefill() -> str:
    """The gaps of streams that decode while a long prompt is read."""
    with _serving("--no-speculation") as server:
        streams, reading = asyncio.run(_beside_a_long_prompt(server))
    begin, end = reading.start, reading.start + reading.ttft
    alone = [gap for record in streams for at, gap in _gaps(record) if at < begin]
    beside = [gap for record in streams for at, gap in _gaps(record) if begin < at < end]
    return (
        f"prefill: {STREAMS} streams, gap p50 {_ms(alone, 50)} and p99 {_ms(alone, 99)} alone, "
        f"{_ms(beside, 50)} and {_ms(beside, 99)} while {CONTEXTS[-1]} tokens are read in {reading.ttft:.1f} s"
    )


def crowd() -> str:
    """Throughput with both cores wanted by others."""
    with _serving() as server:
        alone = _rate(_ask(server, [_fields(128, 64, seed) for seed in range(32)], 8))
        with _busy(os.cpu_count() or 1):
            beside = _rate(_ask(server, [_fields(128, 64, seed) for seed in range(32, 64)], 8))
    return f"crowd: {beside / alone:.0%} of {alone:.0f} output tokens/s beside one busy process for every core"


PARTS: dict[str, Callable[[], str]] = {part.__name__: part for part in (start, idle, api, contexts, prefill, crowd)}


def _command(*options: str) -> Command:
    return Command((*HEADRACE, "--kv-memory", "1", *options), "/health/ready")


@contextmanager
def _serving(*options: str) -> Iterator[Server]:
    with tempfile.NamedTemporaryFile() as log, running(_command(*options), Path(log.name)) as server:
        yield server


def _fields(prompt: int, output: int, seed: int) -> dict[str, Any]:
    """Random tokens in, exactly so many out."""
    ids = random.Random(seed).choices(range(1000, 40000), k=prompt)
    fields = {"model": "any", "prompt": ids, "max_tokens": output, "temperature": 0.0, "ignore_eos": True}
    return fields | {"stream": True, "stream_options": {"include_usage": True}}


def _ask(server: Server, questions: list[dict[str, Any]], users: int) -> list[Record]:
    """All answers; so many users ask at once."""

    async def ask() -> list[Record]:
        client, turn = Client(Address.parse(server.url), TIMEOUT_S), asyncio.Semaphore(users)

        async def one(fields: dict[str, Any]) -> Record:
            async with turn:
                return await _answer(client, fields)

        return await asyncio.gather(*map(one, questions))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(ask())


async def _answer(client: Client, fields: dict[str, Any]) -> Record:
    models = await client.fetch("GET", "/v1/models")
    body = msgspec.json.encode(fields | {"model": models["data"][0]["id"]})
    record = await client.stream(Request("/v1/completions", body, fields["max_tokens"]))
    if record.failure is not None:
        raise SystemExit(f"bench.serving: {record.failure.kind}: {record.failure.message}")
    return record


async def _beside_a_long_prompt(server: Server) -> tuple[list[Record], Record]:
    client = Client(Address.parse(server.url), TIMEOUT_S)
    streams = [asyncio.create_task(_answer(client, _fields(64, 1500, seed))) for seed in range(STREAMS)]
    await asyncio.sleep(4.0)  # by then all of them decode
    reading = await _answer(client, _fields(CONTEXTS[-1], 1, STREAMS))
    return list(await asyncio.gather(*streams)), reading


def _gaps(record: Record) -> list[tuple[float, float]]:
    """When each text came, and the time since the one before."""
    return [(at, at - before) for before, at in zip(record.chunks, record.chunks[1:], strict=False)]


def _ms(gaps: list[float], percent: int) -> str:
    return f"{statistics.quantiles(gaps, n=100)[percent - 1] * 1000:.0f} ms"


def _rate(records: list[Record]) -> float:
    tokens = sum(record.output_tokens for record in records)
    return tokens / (max(record.end for record in records) - min(record.start for record in records))


@contextmanager
def _busy(count: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _own_cpu_s(pid: int) -> float:
    """Processor time of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_s(server: Server) -> float:
    return sum(map(_own_cpu_s, tree(server.process.pid)))


if __name__ == "__main__":
    sys.exit(main())
