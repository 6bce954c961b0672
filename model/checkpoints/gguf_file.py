"""A GGUF file as named tensors, mapped into memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.checkpoints.contents import TensorInfo, TokenizerCard
from model.checkpoints.errors import CheckpointError
from model.checkpoints.gguf_header import Header, read_header
from model.checkpoints.gguf_tokenizer import tokenizer_card
from model.quantization import Format, PackedTensor

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A `Checkpoint`."""

    path: Path
    header: Header

    @classmethod
    def open(cls, path: Path) -> "GGUFFile":
        """Reads and checks the header; raises CheckpointError."""
        return cls(path, read_header(path))

    @property
    def kind(self) -> Literal["gguf"]:
        return "gguf"

    @property
    def metadata(self) -> dict[str, Any]:
        return self.header.metadata

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        return self.header.infos

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedTensor]]:
        data = self._map()
        for info, start in zip(self.infos, self.header.starts, strict=True):
            yield info.name, _tensor(info, data[start : start + info.nbytes])

    def tokenizer(self) -> TokenizerCard:
        return tokenizer_card(self.path, self.metadata)

    def _map(self) -> Tensor:
        """The file's bytes. The mapping is private, so not even a write to a tensor could reach the file."""
        try:
            return torch.from_file(str(self.path), shared=False, size=self.path.stat().st_size, dtype=torch.uint8)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(self.path, f"cannot be mapped: {error}") from error


def _tensor(info: TensorInfo, data: Tensor) -> Tensor | PackedTensor:
    if info.dtype in DTYPES:
        return data.view(DTYPES[info.dtype]).view(info.shape)
    rows, columns = prod(info.shape[:-1]), info.shape[-1]
    return PackedTensor(Format[info.dtype], (rows, columns), data.view(rows, -1))
