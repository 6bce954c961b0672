"""What config.json and GGUF metadata say, in every spelling, is what the features say; the rest is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from model.config import Activation, DynamicScaling, LinearScaling, Llama3Scaling, ModelConfig, Rope, YarnScaling
from model.families import UnsupportedModel, describe
from model.weights import WeightsError

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}
LLAMA = {"model_type": "llama", **SIZES}
GEMMA = {**SIZES, "head_dim": 24, "sliding_window": 9, "query_pre_attn_scalar": 20}
GEMMA["hidden_activation"] = "gelu_pytorch_tanh"
GEMMA2 = {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA3 = {"model_type": "gemma3_text", **GEMMA}
GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 80,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 96,
}


def features(config: dict[str, Any]) -> ModelConfig:
    return describe("safetensors", config, frozenset()).config


def gguf_features(**fields: Any) -> ModelConfig:
    return describe("gguf", GGUF | {f"llama.{key}": value for key, value in fields.items()}, frozenset()).config


def test_older_and_newer_rope_fields_say_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    want = Rope(500000.0, Llama3Scaling(8.0, 1.0, 4.0, 32))
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **scaling}}
    old = {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **scaling}, "torch_dtype": "bfloat16"}
    oldest = {"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", **scaling}}
    for fields in (new, old, oldest):
        assert features(LLAMA | fields).rope == want


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({}, Rope(10000.0)),
        ({"rope_theta": 1e6, "rope_scaling": None}, Rope(1e6)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, Rope(10000.0, LinearScaling(2.0))),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, Rope(10000.0, DynamicScaling(2.0, 64))),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, Rope(10000.0, YarnScaling(4.0, 64))),
        ({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}, Rope(1e6)),
    ],
)
def test_a_rope_is_read_in_the_older_spelling(fields: dict[str, Any], want: Rope) -> None:
    assert features(LLAMA | fields).rope == want


def test_gemma_windows_are_found_without_layer_types() -> None:
    assert features(GEMMA2).windows == (9, None, 9, None, 9, None, 9)
    assert features(GEMMA3 | {"sliding_window_pattern": 3}).windows == (9, 9, None, 9, 9, None, 9)
    assert features(GEMMA3).windows == (9, 9, 9, 9, 9, None, 9)
    types = ["full_attention", *["sliding_attention"] * 6]
    assert features(GEMMA3 | {"layer_types": types}).windows == (None, 9, 9, 9, 9, 9, 9)


def test_gemma3_has_two_ropes_in_both_spellings() -> None:
    old = {"rope_theta": 1e6, "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    new = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }
    for fields in (old, {"rope_parameters": new}):
        found = features(GEMMA3 | fields)
        assert (found.rope_of(5), found.rope_of(0)) == (Rope(1e6, LinearScaling(8.0)), Rope(500.0))
    assert (features(GEMMA3).rope, features(GEMMA3).local_rope) == (Rope(1e6), Rope(10000.0))


def test_qwen2_windows_need_their_switch() -> None:
    qwen = {**LLAMA, "model_type": "qwen2", "sliding_window": 9, "max_window_layers": 5}
    assert features(qwen | {"use_sliding_window": False}).windows == ()
    assert features(qwen | {"use_sliding_window": True}).windows == (None,) * 5 + (9, 9)


def test_a_config_written_by_transformers_reads_as_the_hand_written_one() -> None:
    for kind, fields in ((hf.LlamaConfig, LLAMA), (hf.Gemma2Config, GEMMA2), (hf.Gemma3TextConfig, GEMMA3)):
        rewritten = json.loads(kind(**fields).to_json_string(use_diff=False))
        assert features(rewritten) == features(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"hidden_act": "xielu"}, "hidden_act 'xielu' is not supported"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type 'longrope' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks 'factor'"),
        ({"hidden_size": "64"}, "wrong kind"),
        ({"num_attention_heads": 0}, "wrong kind"),
    ],
)
def test_what_is_not_honoured_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(message)) as refusal:
        features(LLAMA | change)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["model_type", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"lacks '{key}'"):
        features({name: value for name, value in LLAMA.items() if name != key})


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "context_length"])
def test_a_missing_gguf_key_is_named(key: str) -> None:
    metadata = {name: value for name, value in GGUF.items() if name != f"llama.{key}"}
    with pytest.raises(UnsupportedModel, match=f"lacks 'llama.{key}'"):
        describe("gguf", metadata, frozenset())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.dimension_count", 8),
        ("attention.value_length", 32),
        ("attention.causal", False),
        ("expert_gating_func", 2),
        ("expert_shared_count", 1),
        ("rope.scaling.attn_factor", 1.19),
        ("rope.scaling.yarn_ext_factor", 0.0),
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("rope.scaling.type", "longrope"),
    ],
)
def test_gguf_keys_that_no_layer_honours_are_refused(key: str, value: object) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(f"{key} {value!r} is not supported")):
        gguf_features(**{key: value})


def test_gguf_architectures_are_listed_in_the_refusal() -> None:
    with pytest.raises(UnsupportedModel, match="'mamba' is not supported; supported are gemma2, gemma3, gpt2, llama"):
        describe("gguf", GGUF | {"general.architecture": "mamba"}, frozenset())


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"rope.scaling.factor": 4.0}, LinearScaling(4.0)),
        ({"rope.scale_linear": 4.0}, LinearScaling(4.0)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, YarnScaling(4.0, 64)),
        ({}, None),
    ],
)
def test_gguf_scalings_are_read_in_every_spelling(fields: dict[str, Any], want: object) -> None:
    assert gguf_features(**fields).rope.scaling == want


def test_gguf_llama_takes_a_window_and_the_vocabulary_from_the_tokens() -> None:
    assert gguf_features(**{"attention.sliding_window": 9}).windows == (9, 9)
    metadata = {key: value for key, value in GGUF.items() if key != "llama.vocab_size"}
    assert describe("gguf", metadata | {"tokenizer.ggml.tokens": ["a"] * 5}, frozenset()).config.vocab_size == 5


def test_the_large_gemmas_scale_attention_by_width_per_head() -> None:
    keys = {"attention.sliding_window": 9, "attention.key_length": 24, "embedding_length": 128}
    for architecture, layers in (("gemma2", 46), ("gemma3", 62)):
        fields = {key.removeprefix("llama."): value for key, value in GGUF.items() if key.startswith("llama.")} | keys
        for count, scale in ((layers, 32**-0.5), (layers - 1, 24**-0.5)):
            metadata = {f"{architecture}.{key}": value for key, value in (fields | {"block_count": count}).items()}
            found = describe("gguf", metadata | {"general.architecture": architecture}, frozenset()).config
            assert found.attention_scale == pytest.approx(scale)


def test_activations_are_read_by_every_name() -> None:
    names = {"gelu_new": Activation.GELU_TANH, "gelu_pytorch_tanh": Activation.GELU_TANH, "gelu": Activation.GELU}
    for name, want in names.items():
        assert features(LLAMA | {"hidden_act": name}).activation is want


@pytest.fixture
def folder(tmp_path: Path, lively: Any) -> Path:
    lively(hf.LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_tensors_are_listed(folder: Path, load: Any) -> None:
    gone = ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"]
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in gone])
    with pytest.raises(WeightsError, match=f"^missing tensors: {gone[0]}, {gone[1]}$"):
        load(folder)


def test_leftover_tensors_are_listed(folder: Path, load: Any) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.adapter.weight": torch.ones(2, 2)}))
    with pytest.raises(WeightsError, match=r"^unknown tensors: model\.layers\.0\.adapter\.weight$"):
        load(folder)


def test_a_long_list_is_abridged(folder: Path, load: Any) -> None:
    rewrite(folder, lambda tensors: tensors.update({f"extra.{i:02}": torch.ones(1) for i in range(20)}))
    with pytest.raises(WeightsError, match=r"extra\.07 and 12 more$"):
        load(folder)


def test_a_tensor_of_the_wrong_shape_is_named(folder: Path, load: Any) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(16, 64)}))
    with pytest.raises(WeightsError, match=re.escape(f"tensor {name} has shape (16, 64), the configuration says")):
        load(folder)


def test_tensors_that_files_may_carry_without_use_are_ignored(folder: Path, load: Any) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(8)}))
    load(folder)
