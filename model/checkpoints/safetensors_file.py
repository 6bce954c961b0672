"""A folder of safetensors files, whole or in shards, as named tensors, mapped into memory."""

import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoints import folder_tokenizer
from model.checkpoints.contents import TensorInfo, TokenizerCard
from model.checkpoints.errors import CheckpointError
from model.checkpoints.json_file import read_object
from model.checkpoints.quantization_config import Scheme, read_scheme
from model.quantization import PackedMatrix

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_DTYPES = {
    **{"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn},
    **{"I64": torch.int64, "I32": torch.int32, "I8": torch.int8},
}


@dataclass(frozen=True, slots=True)
class SafetensorsFolder:
    """A `Checkpoint`. Of a folder it reads JSON, Jinja and safetensors: never pickles, never code."""

    path: Path
    folder: Path
    metadata: dict[str, Any]
    shards: dict[Path, tuple[TensorInfo, ...]]  # as they are stored
    scheme: Scheme | None
    infos: tuple[TensorInfo, ...]

    @classmethod
    def open(cls, path: Path) -> "SafetensorsFolder":
        """Reads config.json and the headers at `path`, a folder or one file of it; raises CheckpointError."""
        folder = path if path.is_dir() else path.parent
        metadata = read_object(folder / "config.json")
        if path.is_file() or (folder / WHOLE).exists():
            file = path if path.is_file() else folder / WHOLE
            shards = {file: _infos(file)}
        else:
            shards = _shards(folder)
        try:
            scheme = read_scheme(metadata)
        except ValueError as error:
            raise CheckpointError(folder / "config.json", str(error)) from error
        return cls(path, folder, metadata, shards, scheme, _put_together(shards, scheme))

    @property
    def kind(self) -> Literal["safetensors"]:
        return "safetensors"

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedMatrix]]:
        if self.scheme is None:
            yield from self._stored()
            return
        try:  # the parts of a matrix may lie in several shards
            yield from self.scheme.assemble(dict(self._stored())).items()
        except ValueError as error:
            raise CheckpointError(self.path, str(error)) from error

    def _stored(self) -> Iterator[tuple[str, Tensor]]:
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
        _check_type(file, name, dtype, _DTYPES)
    return tuple(
        TensorInfo(name, shape, dtype, prod(shape) * _DTYPES[dtype].itemsize) for name, shape, dtype in described
    )


def _check_type(file: Path, name: str, dtype: str, readable: Container[str]) -> None:
    if dtype not in readable:
        supported = ", ".join(ELEMENT_BYTES)
        raise CheckpointError(file, f"tensor {name!r} has dtype {dtype}; supported are {supported}")


def _put_together(shards: Mapping[Path, tuple[TensorInfo, ...]], scheme: Scheme | None) -> tuple[TensorInfo, ...]:
    """Every tensor as `tensors` will give it: made of the headers in the way that it will be of the data."""
    stored = {info.name: (file, info) for file, infos in shards.items() for info in infos}
    if scheme is None:
        shells: Mapping[str, Tensor | PackedMatrix] = {}
    else:
        empty = {name: _shell(info) for name, (_, info) in stored.items()}
        try:
            shells = scheme.assemble(empty)
        except ValueError as error:
            raise CheckpointError(next(iter(shards)).parent, str(error)) from error
    infos = []
    for name in shells or stored:
        matrix = shells.get(name)
        if isinstance(matrix, PackedMatrix):
            infos.append(TensorInfo(name, matrix.shape, matrix.name, matrix.nbytes))
            continue
        file, info = stored[name]
        _check_type(file, name, info.dtype, ELEMENT_BYTES)
        infos.append(info)
    return tuple(infos)


def _shell(info: TensorInfo) -> Tensor:
    return torch.empty(info.shape, dtype=_DTYPES[info.dtype], device="meta")


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
