"""A server whose engine is two replicas in a Ray cluster of its own, and what is seen of them from outside."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from support import RunningServer, running_server, wait_until

from bench.servers import processes

OPTIONS = ("--threads", "1", "--kv-memory", "0.5", "--check-invariants")


@contextlib.contextmanager
def replicas(model: Path, *arguments: str, count: str = "2") -> Iterator[RunningServer]:
    """Ready with the least of so many."""
    options = ("--model", str(model), "--ray", count, *OPTIONS, *arguments)
    with running_server(*options, RAY_ADDRESS="local") as server:
        wait_for_replicas(server, int(count.partition("-")[0]))
        yield server


def wait_for_replicas(server: RunningServer, count: int) -> None:
    wait_until(lambda: server.metric("headrace_replicas") == count, 120.0)


def replica_processes(server: RunningServer) -> list[int]:
    return processes(server.process.pid, "ServeReplica:headrace:Engine")


def engine_processes(server: RunningServer) -> list[int]:
    return processes(server.process.pid, "server.engine.loop")


def is_there(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def routed(server: RunningServer) -> dict[tuple[str, str], float]:
    """Requests by replica and why they went there."""
    text = httpx.get(f"{server.url}/metrics").text
    (family,) = [f for f in text_string_to_metric_families(text) if f.name == "headrace_replica_requests_routed"]
    return {(sample.labels["replica"], sample.labels["why"]): sample.value for sample in family.samples}
