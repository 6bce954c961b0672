"""The models and the server that the relations are checked on. Test folders are no packages, hence the path."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from copying_model import write_copying_model
from in_process import Model
from loading import NAMES, load_family
from serving import Served, serving


@pytest.fixture(scope="package", autouse=True)
def threads_of_torch() -> Iterator[None]:
    """Loading a model takes them from torch."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_family(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="package")
def copying_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_copying_model(tmp_path_factory.mktemp("copying"))


@pytest.fixture(scope="package")
def served(copying_model: Path) -> Iterator[Served]:
    with serving(copying_model) as served:
        yield served
