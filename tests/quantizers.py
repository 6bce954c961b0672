"""Packs matrices as the formats of safetensors have them, number by number, and says what the packed ones mean."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.quantization.float8 import Float8Layout, Float8Matrix
from model.quantization.gptq import GptqLayout, GptqMatrix

Parts = dict[str, Tensor]  # by their names behind the module's
Quantizer = Callable[[Tensor], tuple[Parts, Tensor]]  # the parts, and the weights that they mean, fp32
Array = NDArray[Any]

MATRICES = re.compile(r"(_proj|\.w\d)\.weight$")


def write_packed(
    model: hf.PreTrainedModel, folder: Path, quantize: Quantizer, config: dict[str, Any], left_out: str = "$^"
) -> hf.PreTrainedModel:
    """Writes the model with packed projections, but for those left out; gives a model with what they mean."""
    model.save_pretrained(folder)
    packed: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        plain[name] = tensor
        if not MATRICES.search(name) or re.search(left_out, name):
            packed[name] = tensor
            continue
        parts, plain[name] = quantize(tensor)
        packed |= {f"{name.removesuffix('weight')}{part}": stored.contiguous() for part, stored in parts.items()}
    meant = folder / "meant"
    model.save_pretrained(meant)
    save_file(plain, meant / "model.safetensors", {"format": "pt"})
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    described = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(described))
    return hf.AutoModelForCausalLM.from_pretrained(meant, dtype=torch.float32, attn_implementation="eager").eval()


def affine(weight: Tensor, bits: int, groups: Array, is_symmetric: bool = False) -> tuple[Array, Array, Array, Tensor]:
    """Codes [rows, columns], zeros and fp16 scales [rows, groups], and the weights; `groups` has a number a column."""
    numbers, top = weight.numpy().astype(np.float32), 2**bits - 1
    count = int(groups.max()) + 1
    zeros, scales = np.zeros((len(numbers), count), np.int64), np.zeros((len(numbers), count), np.float16)
    codes = np.zeros(numbers.shape, np.int64)
    for group in range(count):
        own = numbers[:, groups == group]
        low, high = np.minimum(own.min(1), 0), np.maximum(own.max(1), 0)
        if is_symmetric:
            high = np.maximum(high, -low)
            low = -high
        scales[:, group] = (high - low) / top
        wide = scales[:, group].astype(np.float32)
        zeros[:, group] = (top + 1) // 2 if is_symmetric else np.clip(np.round(-low / wide), 0, top)
        codes[:, groups == group] = np.clip(np.round(own / wide[:, None]) + zeros[:, [group]], 0, top)
    meant = (codes - zeros[:, groups]).astype(np.float32) * scales[:, groups].astype(np.float32)
    return codes, zeros, scales, torch.from_numpy(meant)


def words(numbers: Array, bits: int, order: list[int] | None = None) -> Tensor:
    """Along the first dimension, in words of 32 bits, the lowest first, or as the order of a word says."""
    per_word = 32 // bits
    order = order or list(range(per_word))
    found = np.zeros((-(-len(numbers) // per_word), *numbers.shape[1:]), np.uint32)
    for word in range(len(found)):
        for place, which in enumerate(order):
            if word * per_word + which < len(numbers):
                found[word] |= numbers[word * per_word + which].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(found.view(np.int32))


def gptq(
    bits: int = 4, group: int = 32, offset: int = 1, is_ordered: bool = False, is_symmetric: bool = False
) -> Quantizer:
    def quantize(weight: Tensor) -> tuple[Parts, Tensor]:
        columns = weight.shape[1]
        groups = np.arange(columns) // (columns if group == -1 else group)
        if is_ordered:
            np.random.default_rng(columns).shuffle(groups)
        weight = torch.cat([weight[:1].abs(), weight[1:]])  # whose zero is 0, which the first version stores as -1
        codes, zeros, scales, meant = affine(weight, bits, groups, is_symmetric)
        parts = {
            "qweight": words(codes.T, bits),
            "qzeros": words((zeros - offset) % 2**bits, bits).T,
            "scales": torch.from_numpy(scales.T.copy()),
            "g_idx": torch.from_numpy(groups.astype(np.int32)),
        }
        return parts, meant

    return quantize


def awq(group: int = 32) -> Quantizer:
    """Of eight rows a word has, from its lowest bits on, these: AutoAWQ's `order_map`."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def quantize(weight: Tensor) -> tuple[Parts, Tensor]:
        columns = weight.shape[1]
        groups = np.arange(columns) // (columns if group == -1 else group)
        codes, zeros, scales, meant = affine(weight, 4, groups)
        parts = {"qweight": words(codes, 4, order).T, "qzeros": words(zeros, 4, order).T}
        return {**parts, "scales": torch.from_numpy(scales.T.copy())}, meant

    return quantize


def integers(
    bits: int = 8,
    group: int | None = None,
    is_symmetric: bool = True,
    is_in_words: bool = False,
    input_scale: float | None = None,
) -> Quantizer:
    """As compressed-tensors has them: signed bytes, or words of the same and half of the range."""

    def quantize(weight: Tensor) -> tuple[Parts, Tensor]:
        columns, half = weight.shape[1], 2 ** (bits - 1)
        codes, zeros, scales, meant = affine(weight, bits, np.arange(columns) // (group or columns), is_symmetric)
        parts = {"weight_scale": torch.from_numpy(scales)}
        if is_in_words:
            parts |= {"weight_packed": words(codes.T, bits).T, "weight_shape": torch.tensor(weight.shape)}
        else:
            parts["weight"] = torch.from_numpy((codes - half).astype(np.int8))
        if not is_symmetric:
            signed = torch.from_numpy((zeros - half).astype(np.int8))
            parts["weight_zero_point"] = words(zeros, bits) if is_in_words else signed
        return parts | input_scales(weight, input_scale), meant

    return quantize


def floats(block: tuple[int, int] | None, name: str = "weight_scale", input_scale: float | None = None) -> Quantizer:
    """A scale for so many rows and columns, those at the ends fewer; for the matrix without."""

    def quantize(weight: Tensor) -> tuple[Parts, Tensor]:
        rows, columns = weight.shape
        height, width = block or (rows, columns)
        stored, meant = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(weight.shape)
        scales = torch.empty(-(-rows // height), -(-columns // width))
        for down in range(len(scales)):
            for right in range(scales.shape[1]):
                own = slice(down * height, (down + 1) * height), slice(right * width, (right + 1) * width)
                scales[down, right] = weight[own].abs().max() / 448
                stored[own] = (weight[own] / scales[down, right]).to(torch.float8_e4m3fn)
                meant[own] = stored[own].float() * scales[down, right]
        parts = {"weight": stored, name: scales if block else scales.view(1)}
        return parts | input_scales(weight, input_scale), meant

    return quantize


def input_scales(weight: Tensor, scale: float | None) -> Parts:
    """Another one for queries than for keys and values."""
    return {} if scale is None else {"input_scale": torch.tensor([scale * (1 + len(weight) / 1000)])}


def gptq_matrix(bits: int, group: int, weight: Tensor) -> GptqMatrix:
    return GptqMatrix.build(GptqLayout(bits, group, 1, False), gptq(bits, group)(weight)[0])


def float8_matrix(block: tuple[int, int] | None, weight: Tensor) -> Float8Matrix:
    return Float8Matrix.build(Float8Layout("weight_scale", block, False, None), floats(block)(weight)[0])
