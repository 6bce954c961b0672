"""Packed safetensors of every format give the logits of the same model made of the weights that they mean."""

import json
from pathlib import Path
from typing import Any

import pytest
import quantizers
import torch
import transformers as hf
from families import FAMILIES, SIZES
from rank_threads import agree as ranks_agree

from model.checkpoints import CheckpointError, open_checkpoint
from model.kernels.triton import TritonKernels

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
FORMATS: dict[str, tuple[quantizers.Quantizer, dict[str, Any]]] = {
    "gptq": (quantizers.gptq(), GPTQ),
    "gptq, second version": (quantizers.gptq(offset=0), {**GPTQ, "checkpoint_format": "gptq_v2"}),
    "gptq, symmetric": (quantizers.gptq(is_symmetric=True), {**GPTQ, "sym": True}),
    "gptq, one group": (quantizers.gptq(group=-1), {**GPTQ, "group_size": -1}),
    "gptq, ordered by activation": (quantizers.gptq(is_ordered=True), {**GPTQ, "desc_act": True}),
    "gptq, 8 bits": (quantizers.gptq(bits=8), {**GPTQ, "bits": 8}),
}


def llama() -> hf.PretrainedConfig:
    """As wide as whole groups."""
    return hf.LlamaConfig(**{**SIZES, "intermediate_size": 96})


TRITON = ["gptq", "gptq, 8 bits"]


@pytest.mark.parametrize("form", FORMATS)
def test_packed_matrices_are_what_they_dequantise_to(
    form: str, tmp_path: Path, lively: Any, parity: Any, theirs: Any, sequences: Any
) -> None:
    """By the plain kernels to the last digits; the fast ones hold activations in 16 bits per 32 values."""
    model = lively(llama())
    before = theirs(model, sequences)[0]
    meant = quantizers.write_packed(model, tmp_path, *FORMATS[form])
    assert float((theirs(meant, sequences)[0] - before).abs().max()) > 1e-3, "packing changed nothing"
    parity(tmp_path, meant, fast_tolerance=1e-2)


@pytest.mark.parametrize("family", ["llama with biases", "mixtral", "qwen3_moe"])
def test_other_families_have_packed_matrices_as_well(family: str, tmp_path: Path, lively: Any, parity: Any) -> None:
    """Biases beside them, experts, and projections of other widths, which groups of 16 part."""
    config = FAMILIES[family]()
    quantize = quantizers.gptq(group=8)
    meant = quantizers.write_packed(lively(config), tmp_path, quantize, {**GPTQ, "group_size": 8}, left_out="k_proj")
    parity(tmp_path, meant, fast_tolerance=1e-2)


@pytest.mark.parametrize("form", TRITON)
def test_the_kernels_of_a_card_say_the_same(
    form: str, tmp_path: Path, lively: Any, load: Any, theirs: Any, sequences: Any
) -> None:
    meant = quantizers.write_packed(lively(llama()), tmp_path, *FORMATS[form])
    engine = load(tmp_path, TritonKernels(torch.device("cpu"), torch.float32))
    for ours, reference in zip(engine.logits(sequences[2:]), theirs(meant, sequences[2:]), strict=True):
        assert float((ours - reference).abs().max()) <= 1e-4


@pytest.mark.parametrize("form", ["gptq", "gptq, ordered by activation"])
def test_ranks_say_together_what_one_says(form: str, tmp_path: Path, lively: Any) -> None:
    quantizers.write_packed(lively(llama()), tmp_path, *FORMATS[form])
    ranks_agree(tmp_path, sizes=(2,))


REFUSED = {
    "quant_method 'bitnet'": {"quant_method": "bitnet"},
    "quant_method None": {},
    "bits 3": {**GPTQ, "bits": 3},
    "group_size None": {"quant_method": "gptq", "bits": 4},
    "group_size 12": {**GPTQ, "group_size": 12},
    "checkpoint_format 'marlin'": {**GPTQ, "checkpoint_format": "marlin"},
    "dynamic {'+:.*': {'bits': 8}}": {**GPTQ, "dynamic": {"+:.*": {"bits": 8}}},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_honoured_is_refused_in_one_line(reason: str, tmp_path: Path, lively: Any) -> None:
    quantizers.write_packed(lively(llama()), tmp_path, quantizers.gptq(), REFUSED[reason])
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(tmp_path)
    assert f"config.json: quantization_config: {reason} is not supported; supported are" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_order_that_the_configuration_denies_is_refused(tmp_path: Path, lively: Any) -> None:
    quantizers.write_packed(lively(llama()), tmp_path, quantizers.gptq(is_ordered=True), GPTQ)
    with pytest.raises(CheckpointError, match=r"_proj: desc_act is false, but g_idx orders the columns$"):
        dict(open_checkpoint(tmp_path).tensors())


def test_packed_tensors_without_a_configuration_are_refused(tmp_path: Path, lively: Any) -> None:
    quantizers.write_packed(lively(llama()), tmp_path, *FORMATS["gptq"])
    described = json.loads((tmp_path / "config.json").read_text())
    del described["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="has dtype I32; supported are F32, F16, BF16"):
        open_checkpoint(tmp_path)
