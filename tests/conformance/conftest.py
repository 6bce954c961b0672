"""One real server with the default model for every client, and one that has no room until it has said so."""

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support import TINY, RunningServer, running_server, wait_until, write_tiny_model

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests of this folder share its helpers

LONG = 2**15  # tokens, of which one sequence takes its time
REFUSED = re.compile(r'^headrace_requests_rejected_total\{reason="server_is_overloaded"\} (\S+)$', re.MULTILINE)


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """`headrace serve`, with a KV cache that leaves this machine's memory to others."""
    with running_server("--kv-memory", "0.3") as server:
        yield server


@pytest.fixture(scope="session")
def base_url(server: RunningServer) -> str:
    return f"{server.url}/v1"


@pytest.fixture(scope="session")
def model(base_url: str) -> str:
    """The id that clients are told."""
    models: list[dict[str, str]] = httpx.get(f"{base_url}/models").json()["data"]
    return models[0]["id"]


@pytest.fixture(scope="session")
def narrow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Has room for two sequences."""
    folder = tmp_path_factory.mktemp("models") / "narrow"
    model = write_tiny_model(folder, config=TINY | {"max_position_embeddings": LONG})
    with running_server("--model", str(model), "--max-sequences", "1", "--max-queue", "1") as server:
        yield server


@pytest.fixture
def busy_server(narrow_server: RunningServer) -> Iterator[RunningServer]:
    """Full, until it has refused a request."""
    before = _refused(narrow_server)
    body = {"prompt": "a", "n": 2, "max_tokens": LONG - 9, "ignore_eos": True, "stream": True}
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.stream("POST", f"{narrow_server.url}/v1/completions", json=body, timeout=60) as answer,
    ):
        events = answer.iter_bytes()  # whose end would end the request
        next(events)

        def leave() -> None:
            wait_until(lambda: _refused(narrow_server) > before, 60)
            answer.close()

        leaving = pool.submit(leave)
        yield narrow_server
        leaving.result()


def _refused(server: RunningServer) -> float:
    found = REFUSED.search(httpx.get(f"{server.url}/metrics").text)
    return float(found[1]) if found else 0.0
