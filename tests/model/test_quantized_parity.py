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
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoints import CheckpointError, open_checkpoint
from model.kernels import Kernels, select
from model.kernels.triton import TritonKernels
from model.quantization.matrix import PackedMatrix
from model.quantization.rounding import Rounding
from model.weights import WeightsError

CPU = torch.device("cpu")
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """As compressed-tensors writes it; what is stored how follows from the type."""
    form = "float-quantized" if weights["type"] == "float" else "int-quantized" if inputs else "pack-quantized"
    group = {"weights": {"symmetric": True, **weights}, "input_activations": inputs, "targets": ["Linear"]}
    described = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return {**described, "ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed"}


INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32}
INT8 = {"type": "int", "num_bits": 8, "strategy": "channel"}
FLOAT8 = {"type": "float", "num_bits": 8, "strategy": "channel"}
DYNAMIC = {"num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "symmetric": True, "strategy": "tensor", "dynamic": False}
IN_BYTES = {"format": "int-quantized"}
FLOAT = torch.float8_e4m3fn
FORMATS: dict[str, tuple[quantizers.Quantizer, dict[str, Any]]] = {
    "gptq": (quantizers.gptq(), GPTQ),
    "gptq, second version": (quantizers.gptq(offset=0), {**GPTQ, "checkpoint_format": "gptq_v2"}),
    "gptq, symmetric": (quantizers.gptq(is_symmetric=True), {**GPTQ, "sym": True}),
    "gptq, one group": (quantizers.gptq(group=-1), {**GPTQ, "group_size": -1}),
    "gptq, ordered by activation": (quantizers.gptq(is_ordered=True), {**GPTQ, "desc_act": True}),
    "awq": (quantizers.awq(), AWQ),
    "awq, one group": (quantizers.awq(-1), {**AWQ, "group_size": -1}),
    "words": (quantizers.integers(4, 32, is_in_words=True), compressed(INT4)),
    "words with zeros": (quantizers.integers(4, 32, False, is_in_words=True), compressed({**INT4, "symmetric": False})),
    "words of bytes": (quantizers.integers(8, is_in_words=True), compressed(INT8)),
    "bytes": (quantizers.integers(), compressed(INT8) | IN_BYTES),
    "bytes with zeros": (quantizers.integers(is_symmetric=False), compressed({**INT8, "symmetric": False}) | IN_BYTES),
    "floats": (quantizers.floats((1, 10**6)), compressed(FLOAT8)),
    "floats of blocks": (
        quantizers.floats((16, 32)),
        compressed({**FLOAT8, "strategy": "block", "block_structure": [16, 32]}),
    ),
    "gptq, 8 bits": (quantizers.gptq(bits=8), {**GPTQ, "bits": 8}),
}


def llama() -> hf.PretrainedConfig:
    """As wide as whole groups."""
    return hf.LlamaConfig(**{**SIZES, "intermediate_size": 96})


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
BLOCKS = {**FP8, "weight_block_size": [16, 32]}
ROUNDED: dict[str, tuple[quantizers.Quantizer, dict[str, Any], torch.dtype, int | None, float | None]] = {
    "W8A8": (quantizers.integers(), compressed(INT8, {**DYNAMIC, "type": "int"}), torch.int8, None, None),
    "W8A8, static": (
        quantizers.integers(input_scale=0.03), compressed(INT8, {**STATIC, "type": "int"}), torch.int8, None, 0.03
    ),
    "W8A8 of floats": (
        quantizers.floats((1, 10**6)), compressed(FLOAT8, {**DYNAMIC, "type": "float"}), FLOAT, None, None
    ),
    "W8A8 of floats, static": (
        quantizers.floats(None, input_scale=0.01),
        compressed({**FLOAT8, "strategy": "tensor"}, {**STATIC, "type": "float"}), FLOAT, None, 0.01,
    ),
    "fp8": (quantizers.floats(None), FP8, FLOAT, None, None),
    "fp8, static": (
        quantizers.floats(None, input_scale=0.01), {**FP8, "activation_scheme": "static"}, FLOAT, None, 0.01
    ),
    "fp8 of blocks": (quantizers.floats((16, 32), "weight_scale_inv"), BLOCKS, FLOAT, 32, None),
}  # fmt: skip
TRITON = ["gptq", "floats of blocks"]


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


def rounding(model: hf.PreTrainedModel, dtype: torch.dtype, group: int | None, scale: float | None) -> None:
    """Lets the projections of a model take their input in 8 bits."""

    def rounded(module: torch.nn.Linear, given: tuple[Tensor]) -> Tensor:
        x = given[0].unflatten(-1, (-1, group or given[0].shape[-1]))
        largest = 448.0 if dtype.is_floating_point else 127.5
        steps = x.abs().amax(-1, keepdim=True) / largest
        if scale is not None:
            steps = torch.full_like(steps, scale * (1 + module.out_features / 1000))
        numbers = x / steps
        whole = numbers.to(dtype) if dtype.is_floating_point else numbers.round().clamp(-128, 127)
        return (whole.float() * steps).flatten(-2)

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(rounded)


@pytest.mark.parametrize("form", ROUNDED)
def test_activations_are_rounded_as_the_checkpoint_says(
    form: str, tmp_path: Path, lively: Any, load: Any, theirs: Any, sequences: Any
) -> None:
    """Of integers by the plain kernels only: where the fast ones hold a row in 16 bits, numbers fall to other steps."""
    quantize, config, *how = ROUNDED[form]
    meant = quantizers.write_packed(lively(llama()), tmp_path, quantize, config)
    unrounded = torch.cat(theirs(meant, sequences))
    rounding(meant, *how)
    want = torch.cat(theirs(meant, sequences))
    assert (unrounded - want).abs().median() > 1e-2, "rounding changed nothing"
    for kernels in (None, select(CPU, torch.float32) if how[0] == FLOAT else None):
        logits = torch.cat(load(tmp_path, kernels).logits(sequences))
        assert (logits - want).abs().quantile(0.99) < 1e-4, "more differs than what lies between two steps"


def test_fp8_weights_are_those_that_transformers_makes_of_them(tmp_path: Path, lively: Any) -> None:
    quantizers.write_packed(lively(llama()), tmp_path, quantizers.floats((16, 32), "weight_scale_inv"), BLOCKS)
    how = hf.FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 32))
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how, dtype=torch.float32)
    weights = theirs.state_dict()
    packed = {name: m for name, m in open_checkpoint(tmp_path).tensors() if isinstance(m, PackedMatrix)}
    assert len(packed) == 7 * SIZES["num_hidden_layers"]
    for name, matrix in packed.items():
        assert torch.equal(matrix.dequantize(), weights[name]), name


class RoundingKernels(Kernels):
    """Round what every matrix takes but those of the router and the head."""

    how = Rounding(torch.float8_e4m3fn, 16)

    def linear(self, x_TD: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        is_projection = len(weight) not in (5, SIZES["vocab_size"])
        return super().linear(self.how(x_TD) if is_projection else x_TD, weight, bias)


def test_what_experts_take_is_rounded_as_well(tmp_path: Path, lively: Any, load: Any, sequences: Any) -> None:
    config = {**FP8, "weight_block_size": [16, 16]}
    quantize = quantizers.floats((16, 16), "weight_scale_inv")
    quantizers.write_packed(lively(FAMILIES["mixtral"]()), tmp_path, quantize, config)
    logits = load(tmp_path).logits(sequences)
    want = load(tmp_path / "meant", RoundingKernels(CPU, torch.float32)).logits(sequences)
    assert all(torch.equal(ours, reference) for ours, reference in zip(logits, want, strict=True))


def test_experts_have_to_round_alike(tmp_path: Path, lively: Any, load: Any) -> None:
    config = {**FP8, "activation_scheme": "static"}
    quantizers.write_packed(lively(FAMILIES["mixtral"]()), tmp_path, quantizers.floats(None, input_scale=0.01), config)
    load(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (changed,) = (name for name in tensors if name.endswith("layers.0.block_sparse_moe.experts.1.w2.input_scale"))
    save_file({**tensors, changed: tensors[changed] * 2}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="input_scale differs from expert to expert"):
        load(tmp_path)


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
    engine = load(tmp_path, TritonKernels(CPU, torch.float32))
    short = [sequences[2][:5]]
    assert float((engine.logits(short)[0] - theirs(meant, short)[0]).abs().max()) <= 1e-4


@pytest.mark.parametrize(
    "form",
    [
        "gptq",
        "gptq, ordered by activation",
        "gptq, one group",
        "awq",
        "awq, one group",
        "words with zeros",
        "bytes",
        "floats",
        "floats of blocks",
    ],
)
def test_ranks_say_together_what_one_says(form: str, tmp_path: Path, lively: Any) -> None:
    quantizers.write_packed(lively(llama()), tmp_path, *FORMATS[form])
    ranks_agree(tmp_path, sizes=(2,))


def test_rows_that_are_rounded_whole_are_not_cut_among_ranks(tmp_path: Path, lively: Any) -> None:
    """Others are: those with a scale of the checkpoint's, or one for each block."""
    for form in ("W8A8 of floats, static", "fp8 of blocks"):
        quantize, config, *_ = ROUNDED[form]
        quantizers.write_packed(lively(llama()), tmp_path / form, quantize, config)
        ranks_agree(tmp_path / form, sizes=(2,))
    for form in ("W8A8", "fp8"):
        quantize, config, *_ = ROUNDED[form]
        quantizers.write_packed(lively(llama()), tmp_path / form, quantize, config)
        with pytest.raises(ValueError, match=r"the KV heads .* 1 parts.* packs or rounds 2 of them together"):
            ranks_agree(tmp_path / form, sizes=(2,))


FP8_COMPRESSED = compressed(FLOAT8, {**DYNAMIC, "type": "float"})
GROUPS = FP8_COMPRESSED["config_groups"]
WITHIN = "config_groups.group_0."
REFUSED = {
    "quant_method 'bitnet'": {"quant_method": "bitnet"},
    "quant_method None": {},
    "bits 3": {**GPTQ, "bits": 3},
    "group_size None": {"quant_method": "gptq", "bits": 4},
    "group_size 12": {**GPTQ, "group_size": 12},
    "checkpoint_format 'marlin'": {**GPTQ, "checkpoint_format": "marlin"},
    "version 'gemv'": {**AWQ, "version": "gemv"},
    "zero_point False": {**AWQ, "zero_point": False},
    "fmt 'e5m2'": {**FP8, "fmt": "e5m2"},
    "scale_fmt 'ue8m0'": {**BLOCKS, "scale_fmt": "ue8m0"},
    "weight_block_size 128": {**FP8, "weight_block_size": 128},
    "activation_scheme 'static'": {**BLOCKS, "activation_scheme": "static"},
    "kv_cache_scheme {'num_bits': 8}": {**FP8_COMPRESSED, "kv_cache_scheme": {"num_bits": 8}},
    "format 'marlin-24'": {**FP8_COMPRESSED, "format": "marlin-24"},
    "config_groups": {**FP8_COMPRESSED, "config_groups": {**GROUPS, "group_1": GROUPS["group_0"]}},
    f"{WITHIN}weights.num_bits 2": compressed({**INT4, "num_bits": 2}),
    f"{WITHIN}weights.strategy 'tensor_group'": compressed({**INT4, "strategy": "tensor_group"}),
    f"{WITHIN}input_activations.symmetric False": compressed(INT8, {**DYNAMIC, "type": "int", "symmetric": False}),
    f"{WITHIN}input_activations.strategy 'tensor'": compressed(
        FLOAT8, {**DYNAMIC, "type": "float", "strategy": "tensor"}
    ),
    "dynamic {'+:.*': {'bits': 8}}": {**GPTQ, "dynamic": {"+:.*": {"bits": 8}}},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_honoured_is_refused_in_one_line(reason: str, tmp_path: Path, lively: Any) -> None:
    quantizers.write_packed(lively(llama()), tmp_path, quantizers.gptq(), REFUSED[reason])
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(tmp_path)
    assert f"config.json: quantization_config: {reason} is not supported" in str(refusal.value)
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
