"""A folder of safetensors files, whole or in shards, as named tensors, mapped into memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoints import folder_tokenizer
from model.checkpoints.contents import TensorInfo, TokenizerCard
from model.checkpoints.errors import CheckpointError
from model.checkpoints.json_file import read_object

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class SafetensorsFolder:
    """A `Checkpoint`. Of a folder it reads JSON, Jinja and safetensors: never pickles, never code."""

    path: Path
    folder: Path
    metadata: dict[str, Any]
    shards: dict[Path, tuple[TensorInfo, ...]]

    @classmethod
    def open(cls, path: Path) -> "SafetensorsFolder":
        """Reads config.json and the headers at `path`, a folder or one file of it; raises CheckpointError."""
        folder = path if path.is_dir() else path.parent
        metadata = read_object(folder / "config.json")
        if path.is_file() or (folder / WHOLE).exists():
            file = path if path.is_file() else folder / WHOLE
            return cls(path, folder, metadata, {file: _infos(file)})
        return cls(path, folder, metadata, _shards(folder))

    @property
    def kind(self) -> Literal["safetensors"]:
        return "safetensors"

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        return tuple(info for infos in self.shards.values() for info in infos)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for file, infos in self.shards.items():
            with safe_open(file, framework="pt") as tensors:
                for info in infos:
                    yield info.name, tensors.get_tensor(info.name)

    def tokenizer(self) -> TokenizerCard:
        return folder_tokenizer.tokenizer_card(self.folder, self.metadata, _name(self.folder))


def _infos(file: Path) -> tuple[TensorInfo, ...]:
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
            described = [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(file, str(error)) from error
    for name, _, dtype in described:
        if dtype not in ELEMENT_BYTES:
            supported = ", ".join(ELEMENT_BYTES)
            raise CheckpointError(file, f"tensor {name!r} has dtype {dtype}; supported are {supported}")
    return tuple(TensorInfo(name, shape, dtype, prod(shape) * ELEMENT_BYTES[dtype]) for name, shape, dtype in described)


def _shards(folder: Path) -> dict[Path, tuple[TensorInfo, ...]]:
    """The shards that the index names, each holding exactly the tensors that the index says."""
    index = folder / INDEX
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(index, "weight_map does not map tensors to files")
    shards = {}
    for file in dict.fromkeys(files.values()):
        if Path(file).name != file:
            raise CheckpointError(index, f"weight_map names {file!r}, which is not a file beside it")
        if not (folder / file).is_file():
            raise CheckpointError(index, f"shard {file} is missing")
        infos = shards[folder / file] = _infos(folder / file)
        listed = {name for name, home in files.items() if home == file}
        if differing := sorted(listed ^ {info.name for info in infos}):
            name = differing[0]
            raise CheckpointError(index, f"{file} {'lacks' if name in listed else 'also holds'} tensor {name!r}")
    return shards


def _name(folder: Path) -> str:
    """The folder's name, or the repository's where the folder is a snapshot in Hugging Face's cache."""
    absolute = Path(os.path.abspath(folder))
    if absolute.parent.name == "snapshots" and absolute.parent.parent.name.startswith("models--"):
        return absolute.parent.parent.name.removeprefix("models--").replace("--", "/")
    return absolute.name
