"""Fixtures of this folder, which lets its tests share its helpers, since test folders are no packages."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from container import Container, Image, Store, running


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("store"))
    store.make_base()
    yield store
    store.buildah("rm", "--all")
    store.buildah("rmi", "--all", "--force")


@pytest.fixture(scope="session")
def image(store: Store) -> Image:
    store.build("headrace")
    return store.image("headrace")


@pytest.fixture(scope="session")
def container(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    with socket.create_server(("", 8000)):  # raises where another server has the port and would answer in its place
        pass
    with running(image, tmp_path_factory.mktemp("container") / "running") as container:
        container.wait_until_healthy(300)
        yield container
