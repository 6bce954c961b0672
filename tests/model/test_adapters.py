"""An adapter says what PEFT says with it, alone and beside others; what it asks for in vain is refused."""

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import FAMILIES
from peft import LoraConfig
from torch import Tensor

from model.adapters import Adapter, read_adapter
from model.batch import Batch, Chunk
from model.inputs import pack
from model.kernels import Kernels, select
from model.kv_cache import BLOCK_SIZE, KVCache
from model.linear import Adapted

CPU = torch.device("cpu")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
TARGETS = {
    "llama": ALL,
    "llama with biases": ["q_proj", "v_proj", "up_proj"],
    "qwen2": ["k_proj", "gate_proj"],
    "qwen3": ALL,
    "gemma2": ALL,
    "gemma3": ["v_proj", "down_proj"],
    "mixtral": ATTENTION,
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def adapted_model(name: str, folder: Path, seed: int = 5, **options: Any) -> tuple[Any, Path, Path]:
    """A tiny model with a random adapter, by PEFT: the two as one, the model's folder and the adapter's."""
    from families import lively

    lively(FAMILIES[name]()).save_pretrained(folder / "model")
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": TARGETS[name]} | options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT asks of transformers is on its way out there
        model = peft.get_peft_model(lively(FAMILIES[name]()), config)
    torch.manual_seed(seed)
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            parameter.data.normal_(std=0.15)
    model.save_pretrained(folder / "adapter")
    return model.eval(), folder / "model", folder / "adapter"


@pytest.mark.parametrize("name", TARGETS)
def test_it_says_what_peft_says(name: str, tmp_path: Path, load: Any, theirs: Any, sequences: list[list[int]]) -> None:
    model, base, folder = adapted_model(name, tmp_path)
    want = theirs(model, sequences)
    with model.disable_adapter():
        plain = theirs(model, sequences)
    assert max(float((a - b).abs().max()) for a, b in zip(want, plain, strict=True)) > 1, "it would not be missed"
    for kernels in (Kernels(CPU, torch.float32), select(CPU, torch.float32)):
        transformer = load(base, kernels).transformer
        adapter = read_adapter(folder, transformer)
        for tokens, reference, without in zip(sequences, want, plain, strict=True):
            assert (logits(transformer, tokens, adapter) - reference).abs().max() < 1e-4
            assert (logits(transformer, tokens) - without).abs().max() < 1e-4


@torch.inference_mode()
def logits(transformer: Any, tokens: list[int], adapter: Adapter | None = None) -> Tensor:
    blocks = list(range(-(-len(tokens) // BLOCK_SIZE)))
    cache = KVCache(transformer.config, len(blocks), torch.float32, CPU)
    inputs = pack(Batch([Chunk(tokens, 0, len(tokens), blocks, len(tokens), None)]), CPU)
    adapted = [Adapted(slice(0, len(tokens)), adapter.updates)] if adapter else []
    rows = transformer.forward(transformer.rows(inputs), inputs.spans, cache, adapted)
    return transformer.logits(rows)
