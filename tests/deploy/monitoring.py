"""Operators' tools, and a real Prometheus that watches a server with the shipped configuration."""

import json
import math
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from support import RunningServer, wait_until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KEY = "of-the-tests"
CACHE = Path.home() / ".cache" / "headrace" / "deploy-test"


def debian_program(package: str, path: str) -> Path:
    """A program of a Debian package: the installed one, or else unpacked into the cache, which takes no root."""
    if installed := shutil.which(Path(path).name):
        return Path(installed)
    folder = CACHE / package
    if not (folder / path).exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=folder, check=True)
        archive.unlink()
    return folder / path


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def ask(self, query: str) -> list[float]:
        """The values of the series that a query has now."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=30).json()
        assert answer["status"] == "success", (query, answer)
        return [float(series["value"][1]) for series in answer["data"]["result"]]

    def says(self, query: str) -> bool:
        """Whether a query has an answer, and that is a number."""
        values = self.ask(query)
        return bool(values) and not any(map(math.isnan, values))

    def rules(self) -> list[dict[str, Any]]:
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextmanager
def watching(server: RunningServer, folder: Path) -> Iterator[Prometheus]:
    """A real Prometheus with the shipped configuration, but for the target and the pace."""
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / pattern) for pattern in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = debian_program("prometheus", "usr/bin/prometheus")
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([program, *options, f"--web.listen-address={address}"], stderr=log)
        try:
            prometheus = Prometheus(f"http://{address}")
            wait_until(lambda: process.poll() is None and _is_ready(prometheus.url), 60)
            yield prometheus
        finally:
            process.terminate()
            process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def dashboard_queries() -> dict[str, str]:
    """Panel and legend -> query, with Grafana's variables filled in."""
    panels = json.loads((DEPLOY / "grafana/dashboards/headrace.json").read_text())["panels"]
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$instance", ".*")
        for panel in panels
        for target in panel.get("targets", ())
    }


def series_named(text: str) -> set[str]:
    """The series that a text names, ours and those under vLLM's names."""
    return set(re.findall(r"\b(?:headrace_[a-z_]+|vllm:[a-z_]+)", text))


def exposed_names(metrics: str) -> set[str]:
    """The names of what /metrics shows."""
    return {re.split(r"[{ ]", line)[0] for line in metrics.splitlines() if line[0] != "#"}
