"""Every family from safetensors gives the logits of transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

WINDOW = 9
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
NO_HEAD_DIM = {key: value for key, value in SIZES.items() if key != "head_dim"}
GEMMA = {**SIZES, "sliding_window": WINDOW, "head_dim": 24, "query_pre_attn_scalar": 20}
QWEN3_MOE = {**SIZES, "num_experts": 5, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 0}
GPT2["eos_token_id"] = 0

FAMILIES: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**SIZES),
    "llama without grouping": lambda: hf.LlamaConfig(**{**NO_HEAD_DIM, "num_key_value_heads": 4}),
    "llama with wide heads": lambda: hf.LlamaConfig(**{**SIZES, "head_dim": 24}),
    "llama with biases": lambda: hf.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, tied": lambda: hf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama with its own epsilon": lambda: hf.LlamaConfig(**SIZES, rms_norm_eps=0.1),
    "mistral": lambda: hf.MistralConfig(**SIZES, sliding_window=WINDOW),
    "mistral without window": lambda: hf.MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: hf.Qwen2Config(**NO_HEAD_DIM),
    "qwen2 with windows": lambda: hf.Qwen2Config(**NO_HEAD_DIM, **QWEN_WINDOWS),
    "qwen3": lambda: hf.Qwen3Config(**SIZES),
    "qwen3 with windows": lambda: hf.Qwen3Config(**SIZES, **QWEN_WINDOWS),
    "gemma2": lambda: hf.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=9.0),
    "gemma2 without caps": lambda: hf.Gemma2Config(**GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma3": lambda: hf.Gemma3TextConfig(**{**GEMMA, "num_hidden_layers": 7}),
    "mixtral": lambda: hf.MixtralConfig(**SIZES, num_local_experts=5, num_experts_per_tok=2),
    "mixtral with window": lambda: hf.MixtralConfig(**SIZES, num_local_experts=5, sliding_window=WINDOW),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**QWEN3_MOE, norm_topk_prob=True),
    "qwen3_moe, shares as they are": lambda: hf.Qwen3MoeConfig(**QWEN3_MOE, norm_topk_prob=False),
    "qwen3_moe with windows": lambda: hf.Qwen3MoeConfig(**QWEN3_MOE, **QWEN_WINDOWS),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "gpt2 with exact gelu and wide mlp": lambda: hf.GPT2Config(**GPT2, activation_function="gelu", n_inner=72),
    "gpt2 without attention scale": lambda: hf.GPT2Config(**GPT2, scale_attn_weights=False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_the_logits_of_transformers(family: str, tmp_path: Path, lively: Any, parity: Any) -> None:
    model = lively(FAMILIES[family]())
    model.save_pretrained(tmp_path)
    parity(tmp_path, model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_shards_are_one_model(family: str, tmp_path: Path, lively: Any, parity: Any) -> None:
    model = lively(FAMILIES[family]())
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    parity(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama, tied", "qwen3_moe", "gemma3", "gpt2"])
def test_half_precision_files_are_computed_in_fp32(
    family: str, dtype: torch.dtype, tmp_path: Path, lively: Any, parity: Any
) -> None:
    lively(FAMILIES[family]()).to(dtype).save_pretrained(tmp_path)
    wide = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    parity(tmp_path, wide.eval())


def test_gpt2_files_of_the_bare_model_have_shorter_names(tmp_path: Path, lively: Any, parity: Any) -> None:
    model = lively(FAMILIES["gpt2"]())
    model.transformer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"
    parity(tmp_path, model)
