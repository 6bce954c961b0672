"""Replicas under Ray beside one engine: throughput, latency, prefixes, a replica killed, all of them replaced.

Starts servers of its own with the default model, one after the other. Stop everything else on the machine first.
On a machine of 2 cores it takes five minutes; what was measured is in the JSON file, request by request.
"""

import argparse
import asyncio
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from bench.scale_out.load import Figures, ask, figures, questions
from bench.servers import Command, Server, processes, running
from server.bench.record import Record

HEADRACE = (str(Path(sys.executable).with_name("headrace")), "serve")
ARRANGEMENTS: dict[str, tuple[str, ...]] = {
    "one engine, 1 thread": ("--threads", "1"),
    "1 replica, 1 thread": ("--threads", "1", "--ray", "1"),
    "2 replicas, 1 thread each": ("--threads", "1", "--ray", "2"),
    "one engine, 2 threads": ("--threads", "2"),
    "1 replica, 2 threads": ("--threads", "2", "--ray", "1"),
}
LOST = "a replica killed under load"
REPLACED = "both replicas replaced under load"
STRIKE_AFTER_S = 2.0  # of load
LONG_ANSWER = 192  # tokens, so that a blow meets streams that run
PATIENCE_S = 180.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -P -m bench.scale_out", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, default=Path(__file__).with_name("measured.json"), help="default: %(default)s"
    )
    path = parser.parse_args().json
    results: dict[str, Any] = {}
    for name, options in tqdm(ARRANGEMENTS.items(), unit="arrangement"):
        with _serving(*options) as server:
            ask(server.url, questions(seed=1, count=8))
            _note(results, name, ask(server.url, questions(seed=2)))
            if "2 replicas" in name:
                results[name]["routed"] = _routed(server)
                _note(results, LOST, _lose_one(server))
                _note(results, REPLACED, _replace_all(server))
    path.write_bytes(msgspec.json.encode(results))
    print(_table(results))
    return 0


@contextmanager
def _serving(*options: str) -> Iterator[Server]:
    os.environ["RAY_ADDRESS"] = "local"
    command = Command((*HEADRACE, "--kv-memory", "0.5", *options), "/health/ready")
    with tempfile.NamedTemporaryFile() as log, running(command, Path(log.name)) as server:
        if "--ray" in options:
            _wait_for(server, "headrace_replicas ", float(options[-1]))
        yield server


def _lose_one(server: Server) -> list[Record]:
    async def kill() -> None:
        await asyncio.sleep(STRIKE_AFTER_S)
        os.kill(processes(server.process.pid, "ServeReplica:headrace:Engine")[0], signal.SIGKILL)

    records = ask(server.url, questions(seed=3, count=16, answer=LONG_ANSWER), kill)
    _wait_for(server, "headrace_replicas ", 2.0)
    return records


def _replace_all(server: Server) -> list[Record]:
    """Loads until none of the old is left."""
    old = set(processes(server.process.pid, "ServeReplica:headrace:Engine"))
    os.kill(server.process.pid, signal.SIGHUP)
    records: list[Record] = []
    seed = 4
    while old & set(processes(server.process.pid, "ServeReplica:headrace:Engine")):
        records += ask(server.url, questions(seed, count=16))
        seed += 1
    return records


def _metrics(server: Server) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def _wait_for(server: Server, series: str, value: float) -> None:
    until = time.monotonic() + PATIENCE_S
    while f"\n{series}{value}\n" not in _metrics(server):
        if time.monotonic() > until:
            raise SystemExit(f"bench.scale_out: {series}is not {value}")
        time.sleep(0.2)


def _routed(server: Server) -> dict[str, float]:
    """Requests so far, by why they went where they went."""
    found = re.findall(r'^headrace_replica_requests_routed_total\{.*why="(\w+)"\} (.*)$', _metrics(server), re.M)
    return {why: sum(float(value) for each, value in found if each == why) for why, _ in found}


def _note(results: dict[str, Any], name: str, records: list[Record]) -> None:
    start = min(record.start for record in records)
    results[name] = {
        "figures": asdict(figures(records)),
        "requests": [
            {
                "start": round(record.start - start, 4),
                "prompt_tokens": record.prompt_tokens,
                "cached_tokens": record.usage.cached if record.usage else None,
                "output_tokens": record.output_tokens,
                "chunks": [round(at - start, 4) for at in record.chunks],
                "failure": record.failure.kind if record.failure else None,
            }
            for record in records
        ],
    }


def _table(results: dict[str, Any]) -> str:
    rows = ["| | tok/s | TTFT p50 | p95 | ITL p50 | p99 | longest | from cache | failed |", "|" + "---|" * 9]
    for name, result in results.items():
        f = Figures(**result["figures"])
        times = " | ".join(
            f"{seconds * 1000:.0f} ms" for seconds in (f.ttft_p50, f.ttft_p95, f.itl_p50, f.itl_p99, f.longest_gap)
        )
        shares = f"{f.cached_share:.0%} | {f.failed} of {f.requests}"
        rows.append(f"| {name} | {f.output_tokens_per_s:.0f} | {times} | {shares} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
