"""Rotary positions and their scalings are those of transformers, to the last position of the context."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.families import describe
from model.positions import Rotary, rope_frequencies

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 32},
    "llama3 of Llama 3.1": {**LLAMA3, "original_max_position_embeddings": 8192, "rope_theta": 500000.0},
    "yarn": YARN,
    "yarn of a long context": {**YARN, "original_max_position_embeddings": 4096, "rope_theta": 1e6},
    "yarn with betas": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0},
    "yarn with one mscale": {**YARN, "mscale": 0.7},
    "yarn with mscales": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.4},
    "yarn with attention_factor": {**YARN, "attention_factor": 1.3},
    "yarn not truncated": {**YARN, "truncate": False},
    "yarn by the ratio of lengths": {**YARN, "factor": None},
    "yarn that shrinks": {**YARN, "factor": 0.5},
}


def llama(context: int, rope: dict[str, Any]) -> hf.LlamaConfig:
    return hf.LlamaConfig(**SIZES, max_position_embeddings=context, rope_parameters={"rope_theta": 10000.0, **rope})


def described(config: hf.PretrainedConfig) -> Any:
    return describe("safetensors", config.to_dict(), frozenset()).config


@pytest.mark.parametrize("scaling", [name for name in SCALINGS if name != "default"])
def test_a_scaling_has_the_frequencies_of_transformers(scaling: str) -> None:
    config = llama(4096, SCALINGS[scaling])
    want, amplitude = ROPE_INIT_FUNCTIONS[SCALINGS[scaling]["rope_type"]](config, torch.device("cpu"))
    features = described(config)
    frequencies, factor = rope_frequencies(features.rope, features.head_dim, features.context_length)
    assert torch.allclose(frequencies, want, rtol=1e-6, atol=0)
    assert factor == pytest.approx(amplitude, rel=1e-9)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_scaled_model_gives_the_logits_of_transformers(
    scaling: str, tmp_path: Path, lively: Any, parity: Any
) -> None:
    model = lively(llama(4096, SCALINGS[scaling]))
    model.save_pretrained(tmp_path)
    parity(tmp_path, model)


def test_the_scalings_of_the_test_are_not_all_alike() -> None:
    """Equal angles would prove nothing, but where a field is rightly without effect."""
    equal = {"yarn with one mscale", "yarn by the ratio of lengths"}
    found = [rope_frequencies(described(llama(4096, s)).rope, 16, 4096) for s in SCALINGS.values()]
    pictures = {(tuple(frequencies.tolist()), amplitude) for frequencies, amplitude in found}
    assert len(pictures) == len(SCALINGS) - len(equal)


@pytest.fixture
def dynamic() -> hf.LlamaConfig:
    """Made for 16 positions, stretched to 40."""
    return llama(16, {"rope_type": "dynamic", "factor": 2.5})


def test_dynamic_scaling_serves_the_stretched_length(dynamic: hf.LlamaConfig) -> None:
    assert described(dynamic).context_length == 40


def test_dynamic_scaling_is_that_of_transformers_at_the_longest_length(
    dynamic: hf.LlamaConfig, tmp_path: Path, lively: Any, load: Any, theirs: Any, sequences: Any
) -> None:
    model = lively(dynamic)
    model.save_pretrained(tmp_path)
    engine, longest = load(tmp_path), [sequences[0][:40]]
    (want,) = theirs(model, longest)
    for cuts in ([], [15, 16, 17, 33]):
        (got,) = engine.logits(longest, cuts)
        assert float((got - want).abs().max()) <= 1e-4


def test_dynamic_scaling_is_absent_within_the_original_length(
    dynamic: hf.LlamaConfig, tmp_path: Path, lively: Any, load: Any, theirs: Any, build: Any, sequences: Any
) -> None:
    """Where no more than the original length is served, nothing is stretched; where more is, short inputs are too."""
    model = lively(dynamic)
    model.save_pretrained(tmp_path)
    engine, short = load(tmp_path), [sequences[0][:16]]
    (want,) = theirs(model, short)
    served = build(replace(engine.config, context_length=16), engine.tensors, engine.names)
    assert float((served.logits(short)[0] - want).abs().max()) <= 1e-4
    assert float((engine.logits(short)[0] - want).abs().max()) > 1e-3


def test_dynamic_scaling_does_not_depend_on_what_else_is_served(
    dynamic: hf.LlamaConfig, tmp_path: Path, lively: Any, load: Any, sequences: Any
) -> None:
    lively(dynamic).save_pretrained(tmp_path)
    engine = load(tmp_path)
    (alone,) = engine.logits([sequences[1][:20]])
    engine.logits([sequences[0][:40]])
    assert torch.equal(engine.logits([sequences[1][:20]])[0], alone)


def test_angles_hold_at_the_end_of_a_long_context() -> None:
    """Positions are turned into angles in fp32, as transformers does, so the last of 131,072 agrees."""
    config = llama(131072, {**LLAMA3, "original_max_position_embeddings": 8192, "rope_theta": 500000.0})
    features = described(config)
    positions = torch.tensor([0, 1, 4095, 65536, 131071])
    cos, sin = Rotary(features.rope, features.head_dim, features.context_length, positions.device)(positions)
    reference = hf.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    want_cos, want_sin = reference(torch.zeros(1), positions[None])
    assert torch.allclose(cos, want_cos[0, :, :8], atol=1e-6)
    assert torch.allclose(sin, want_sin[0, :, :8], atol=1e-6)
