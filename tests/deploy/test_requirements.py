"""What the containers install: hashed each, and the releases that everything else is tested with."""

import re

import pytest
from monitoring import ROOT

FOLDER = ROOT / "deploy/image"
PINNED = re.compile(
    r"^([\w.-]+)==([^\s+]+)(?:\+\w+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


def pins(text: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("target", ["build", "cpu", "cuda"])
def test_every_requirement_has_a_hash(target: str) -> None:
    assert PINNED.sub("", (FOLDER / f"{target}.txt").read_text()) == ""


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_releases_are_those_of_the_constraints(target: str) -> None:
    tested = pins((ROOT / "constraints.txt").read_text())
    hashed = pins((FOLDER / f"{target}.txt").read_text())
    installed = {name: version.removesuffix("+cpu") for name, version in hashed.items()}
    assert {name: tested[name] for name in installed.keys() & tested.keys()}.items() <= installed.items()
    cuda = {name for name in installed if name.startswith(("cuda-", "nvidia-"))}
    assert installed.keys() - tested.keys() - cuda <= {"pip", "setuptools"}
