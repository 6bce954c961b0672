"""What every checkpoint offers, whatever its files look like."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from model.quantization import PackedMatrix


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the header describes it, without its data."""

    name: str
    shape: tuple[int, ...]  # torch's order: the last dimension is contiguous
    dtype: str  # "F32", "F16", "BF16" or the name of a `PackedMatrix`
    nbytes: int  # in the file


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerCard:
    """What turning text into tokens and back needs to know."""

    tokenizer_json: str  # as the tokenizers library reads it
    chat_template: str | None  # Jinja2 source
    special_tokens: dict[str, str]  # "bos_token", "eos_token", "unk_token", "pad_token", ... -> text
    eos_ids: list[int]  # tokens that end an answer
    name: str  # what to call the model


class Checkpoint(Protocol):
    """The files of one model: opened means that headers are read and checked, and no weight is."""

    @property
    def path(self) -> Path: ...

    @property
    def kind(self) -> Literal["safetensors", "gguf"]: ...

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of config.json, or the GGUF key/values."""

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """Every tensor, in the order of `tensors`."""

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedMatrix]]:
        """Every tensor by name, memory-mapped: its pages are read when they are used.

        A packed tensor of three dimensions (experts, rows, columns) comes flattened to (experts * rows, columns);
        `PackedTensor.split` takes it apart.
        """

    def tokenizer(self) -> TokenizerCard:
        """Raises CheckpointError where the checkpoint holds no tokenizer, or one that we cannot follow."""
