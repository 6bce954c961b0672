"""The whole server as an application of Ray Serve, as the RayService has it, asked through Serve's proxy."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from asking import Body, ask
from monitoring import DEPLOY
from support import running_server, wait_until

pytestmark = pytest.mark.deploy


def bodies() -> list[Body]:
    fields: Body = {"max_tokens": 40, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    return [fields | {"prompt": f"{place} bottles", "temperature": place % 2, "seed": place} for place in range(6)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def url(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    manifest = yaml.safe_load((DEPLOY / "ray/rayservice.yaml").read_text())
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    config["http_options"] |= {"host": "127.0.0.1", "port": (port := free_port())}
    config["applications"][0]["args"] |= {"model": str(tiny_model), "ray": "1", "threads": 1, "kv_memory": 0.1}
    folder = tmp_path_factory.mktemp("serve")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("serve")), "run", str(folder / "config.yaml")]
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}") or process.poll() is not None, 120.0)
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_it_says_what_one_engine_says(url: str, tiny_model: Path) -> None:
    with running_server("--model", str(tiny_model)) as server:
        assert asyncio.run(ask(url, bodies())) == asyncio.run(ask(server.url, bodies()))


def test_it_streams_and_hears_who_leaves(url: str) -> None:
    def running() -> str:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return next(line.split()[-1] for line in lines if line.startswith("headrace_requests_running "))

    body = {"prompt": "For ever", "max_tokens": 490, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        first = next(answer.iter_lines())
        assert first.startswith("data: ")
    wait_until(lambda: running() == "0.0", 30.0)


def test_its_errors_are_its_own(url: str) -> None:
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "misspelt": 1})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "misspelt"
