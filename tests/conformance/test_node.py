"""The clients for Node, whose tests are written in their own language and run by Node's own runner."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from installed import HERE, NODE, node_modules
from support import RunningServer

TEST = re.compile(r'^test\("(.+?)"', re.MULTILINE)
TESTS = [(path.name, name) for path in sorted((HERE / "node").glob("*.mjs")) for name in TEST.findall(path.read_text())]
Results = dict[str, str]  # by name: "", or what went wrong


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests beside the packages, where Node looks for them."""
    folder = tmp_path_factory.mktemp("node")
    for path in (HERE / "node").glob("*.mjs"):
        shutil.copy(path, folder)
    (folder / "node_modules").symlink_to(node_modules())
    return folder


@pytest.fixture(scope="module")
def known() -> dict[str, Results]:
    """Of each file that has run."""
    return {}


@pytest.fixture
def results(
    file: str, known: dict[str, Results], folder: Path, base_url: str, model: str, request: pytest.FixtureRequest
) -> Results:
    """Of a file, which runs once."""
    if file not in known:
        busy: RunningServer = request.getfixturevalue("busy_server")
        where = {"BASE_URL": base_url, "BUSY_URL": f"{busy.url}/v1", "MODEL": model}
        command = [NODE, "--test", "--test-reporter=junit", file]
        ran = subprocess.run(command, cwd=folder, env=os.environ | where, capture_output=True, text=True, timeout=300)
        cases = ElementTree.fromstring(ran.stdout).iter("testcase")
        known[file] = {case.attrib["name"]: "".join(case.itertext()).strip() for case in cases}
    return known[file]


@pytest.fixture
def file(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize(("file", "name"), TESTS, indirect=["file"])
def test_it_works(results: Results, name: str) -> None:
    assert results[name] == ""
