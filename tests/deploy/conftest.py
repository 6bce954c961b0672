"""Fixtures of this folder, which lets its tests share its helpers, since test folders are no packages."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import RunningServer, running_server

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))  # asking.py
sys.path.insert(0, str(Path(__file__).parents[2]))  # bench

from monitoring import KEY, Prometheus, debian_program, watching


@pytest.fixture(scope="session")
def promtool() -> Path:
    return debian_program("prometheus", "usr/bin/promtool")


@pytest.fixture(scope="session")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"ada: {KEY}\n")
    options = ("--api-key-file", str(keys), "--open-metrics")
    with running_server("--model", str(tiny_model), "--check-invariants", *options) as server:
        yield server


@pytest.fixture(scope="session")
def prometheus(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with watching(server, tmp_path_factory.mktemp("prometheus")) as prometheus:
        yield prometheus
