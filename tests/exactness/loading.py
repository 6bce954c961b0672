"""A tiny model of every family, loaded as the engine loads any model, with a cache of the tests' size."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import families
import gguf
import torch
import transformers as hf
from in_process import BLOCKS, Model

from model.checkpoints.contents import Checkpoint
from model.loading import load
from model.quantization import PackedTensor
from model.quantization.formats import Format
from model.weights import Matrix
from server.config import EngineOptions
from server.engine.loop import open_for

PACKED = "llama, packed"  # as the default model's file is
SMALLEST = "llama, packed, int8"  # with activations and cache as small as they get
ODD_HEADS = "llama with odd heads"  # of a size that the C++ attention leaves to torch
PAPER = "paper"
NAMES = (
    "llama, tied",
    PACKED,
    SMALLEST,
    ODD_HEADS,
    "mistral",
    "qwen2 with windows",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "gemma2",
    "gemma3",
    "gpt2",
    PAPER,
)


def load_family(name: str, folder: Path) -> Model:
    if name == PAPER:
        families.write_paper(families.lively_paper(), folder)
    else:
        families.lively(_config(name)).save_pretrained(folder)
    options = EngineOptions(model=str(folder), device="cpu")
    if name == SMALLEST:
        options = EngineOptions(model=str(folder), device="cpu", activations="int8", kv_dtype="int8")
    opened = open_for(options, lambda *_: None)
    if name in (PACKED, SMALLEST):
        opened = replace(opened, checkpoint=_Packed(opened.checkpoint))
    return Model(load(opened, replace(opened.plan(), num_blocks=BLOCKS), lambda *_: None))


def _config(name: str) -> hf.PretrainedConfig:
    if name == ODD_HEADS:
        return hf.LlamaConfig(**{**families.SIZES, "head_dim": 20, "num_hidden_layers": 1})
    return families.FAMILIES["llama" if name in (PACKED, SMALLEST) else name]()


@dataclass(frozen=True, slots=True)
class _Packed:
    """A checkpoint whose matrices are Q8_0 wherever a row holds whole blocks."""

    checkpoint: Checkpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self.checkpoint, name)

    def tensors(self) -> Iterator[tuple[str, Matrix]]:
        for name, tensor in self.checkpoint.tensors():
            assert isinstance(tensor, torch.Tensor)
            is_whole = tensor.dim() == 2 and tensor.shape[1] % Format.Q8_0.block_size == 0
            yield name, _pack(tensor) if is_whole else tensor


def _pack(matrix: torch.Tensor) -> PackedTensor:
    data = gguf.quants.quantize(matrix.numpy(), gguf.GGMLQuantizationType.Q8_0)
    return PackedTensor(Format.Q8_0, (matrix.shape[0], matrix.shape[1]), torch.from_numpy(data))
