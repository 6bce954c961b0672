"""Checkpoints that the library of that name has written give the logits that its own simulation gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from families import SIZES
from torch import Tensor

INT4 = QuantizationArgs(num_bits=4, strategy="group", group_size=32)
INT8 = QuantizationArgs(num_bits=8, strategy="channel")
FLOAT8 = QuantizationArgs(num_bits=8, type="float", strategy="channel")
DYNAMIC: dict[str, Any] = {"num_bits": 8, "strategy": "token", "dynamic": True}
# What is stored how, and what is taken in 8 bits.
SCHEMES: dict[str, tuple[QuantizationArgs, QuantizationArgs | None]] = {
    "W4A16": (INT4, None),
    "W4A16 with zeros": (INT4.model_copy(update={"symmetric": False}), None),
    "W8A16": (INT8, None),
    "W8A8": (INT8, QuantizationArgs(**DYNAMIC)),
    "FP8": (FLOAT8, QuantizationArgs(**DYNAMIC, type="float")),
    "FP8, static": (
        FLOAT8.model_copy(update={"strategy": "tensor"}),
        QuantizationArgs(num_bits=8, type="float", strategy="tensor"),
    ),
    "FP8 of blocks": (
        QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=[16, 32]),
        QuantizationArgs(num_bits=8, type="float", strategy="group", group_size=32, dynamic=True),
    ),
}
INPUT_SCALE = 0.01  # where it is static


def compress(model: hf.PreTrainedModel, scheme: str) -> None:
    """Until the model is saved, it computes as it is going to be stored, by fake quantisation in fp32."""
    weights, inputs = SCHEMES[scheme]
    group = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"]))
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        scale, zero = calculate_qparams(*_ranges(module.weight.detach(), weights), weights)
        _set(module, weight_scale=scale, weight_zero_point=zero)
        _set(module, input_scale=torch.tensor(INPUT_SCALE), input_zero_point=torch.tensor(0))
        module.quantization_status = QuantizationStatus.FROZEN


def _ranges(weight: Tensor, how: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """The lowest and the highest of all that share a scale."""
    rows, columns = weight.shape
    height, width = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "group": (1, how.group_size),
        "block": how.block_structure,
    }[how.strategy]
    parts = weight.unflatten(1, (-1, width)).unflatten(0, (-1, height))
    return parts.amin((1, 3)), parts.amax((1, 3))


def _set(module: torch.nn.Module, **values: Tensor) -> None:
    for name, value in values.items():
        if (parameter := getattr(module, name, None)) is not None:
            parameter.data.copy_(value.expand(parameter.shape) if value.ndim == 0 else value.view(parameter.shape))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_the_library_writes_means_what_it_computes(
    scheme: str, tmp_path: Path, lively: Any, load: Any, theirs: Any, sequences: Any
) -> None:
    model = lively(hf.LlamaConfig(**{**SIZES, "intermediate_size": 96}))
    before = torch.cat(theirs(model, sequences))
    compress(model, scheme)
    want = torch.cat(theirs(model, sequences))
    assert (want - before).abs().median() > 1e-2, "nothing was rounded"
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    logits = torch.cat(load(tmp_path).logits(sequences))
    assert (logits - want).abs().quantile(0.99) < 1e-4
