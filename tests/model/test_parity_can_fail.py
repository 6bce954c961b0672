"""A model that is wrong in one detail is further from transformers than parity allows, so parity proves the detail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from model.config import Activation, NormPlace

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
GEMMA = {**SIZES, "sliding_window": 9, "head_dim": 24, "query_pre_attn_scalar": 20}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 0}
FAMILIES: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**SIZES, attention_bias=True),
    "mistral": lambda: hf.MistralConfig(**SIZES, sliding_window=9),
    "qwen3": lambda: hf.Qwen3Config(**SIZES),
    "gemma2": lambda: hf.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=9.0),
    "gemma3": lambda: hf.Gemma3TextConfig(**{**GEMMA, "num_hidden_layers": 7}),
    "mixtral": lambda: hf.MixtralConfig(**SIZES, num_local_experts=5, num_experts_per_tok=2),
    "gpt2": lambda: hf.GPT2Config(**GPT2, eos_token_id=0),
}


def config(**changes: Any) -> Callable[[Any, Any], Any]:
    """The same weights under other features; a callable is given the true value."""

    def mutate(engine: Any, build: Any) -> Any:
        found = {
            name: value(getattr(engine.config, name)) if callable(value) else value for name, value in changes.items()
        }
        return build(replace(engine.config, **found), engine.tensors, engine.names)

    return mutate


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Any, Any], Any]:
    """The same features with other weights; None removes the tensor."""

    def mutate(engine: Any, build: Any) -> Any:
        changed = change(engine.tensors[name])
        others = {key: value for key, value in engine.tensors.items() if key != name}
        return build(engine.config, others if changed is None else others | {name: changed}, engine.names)

    return mutate


def without_final_norm(engine: Any, build: Any) -> Any:
    engine = build(engine.config, engine.tensors, engine.names)
    engine.transformer.norm = None
    return engine


def swapped_layers(engine: Any, build: Any) -> Any:
    engine = build(engine.config, engine.tensors, engine.names)
    engine.transformer.layers.reverse()
    return engine


def heads_swapped(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.view(-1, 16, 64).flip(0).reshape(matrix.shape)


def neighbours_rotated(matrix: torch.Tensor) -> torch.Tensor:
    """What a GGUF's rows would be, were they taken as they are."""
    return matrix.view(-1, 2, 8, 64).transpose(1, 2).reshape(matrix.shape)


def shifted(windows: tuple[int | None, ...], by: int) -> tuple[int | None, ...]:
    return tuple(None if window is None else window + by for window in windows)


ATTENTION = "model.layers.0.self_attn"
MUTATIONS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "a window one too wide": ("mistral", config(windows=lambda windows: shifted(windows, 1))),
    "a window one too narrow": ("mistral", config(windows=lambda windows: shifted(windows, -1))),
    "no window": ("mistral", config(windows=())),
    "windows in the other layers": ("gemma2", config(windows=(None, 9, None))),
    "no final norm": ("llama", without_final_norm),
    "layers in another order": ("llama", swapped_layers),
    "another theta": ("llama", config(rope=lambda rope: replace(rope, theta=10100.0))),
    "one theta for all layers": ("gemma3", config(local_rope=None)),
    "no attention softcap": ("gemma2", config(attention_softcap=None)),
    "no logits softcap": ("gemma2", config(logits_softcap=None)),
    "attention scaled by the head size": ("gemma2", config(attention_scale=None)),
    "embeddings as they are": ("gemma2", config(embedding_scale=1.0)),
    "norms as they are": ("gemma2", config(norm_offset=0.0)),
    "no norms after sublayers": ("gemma2", config(norm_place=NormPlace.PRE)),
    "another epsilon": ("llama", config(norm_eps=1e-3)),
    "exact gelu for the approximate one": ("gpt2", config(activation=Activation.GELU)),
    "relu for gelu": ("gpt2", config(activation=Activation.RELU)),
    "query heads in another order": ("llama", tensor(f"{ATTENTION}.q_proj.weight", heads_swapped)),
    "key heads in another order": ("llama", tensor(f"{ATTENTION}.k_proj.weight", heads_swapped)),
    "rotation of neighbours": ("llama", tensor(f"{ATTENTION}.q_proj.weight", neighbours_rotated)),
    "no query bias": ("llama", tensor(f"{ATTENTION}.q_proj.bias", lambda bias: None)),
    "no query norm": ("qwen3", tensor(f"{ATTENTION}.q_norm.weight", lambda weight: None)),
    "expert shares as they are": ("mixtral", config(experts=lambda experts: replace(experts, normalize=False))),
    "one expert only": ("mixtral", config(experts=lambda experts: replace(experts, per_token=1))),
    "no positions": ("gpt2", tensor("transformer.wpe.weight", torch.zeros_like)),
    "positions off by one": ("gpt2", tensor("transformer.wpe.weight", lambda weight: weight.roll(1, 0))),
}


def worst(ours: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, want, strict=True))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_parity_notices(
    mutation: str, tmp_path: Path, lively: Any, load: Any, build: Any, theirs: Any, sequences: Any
) -> None:
    family, mutate = MUTATIONS[mutation]
    model = lively(FAMILIES[family]())
    model.save_pretrained(tmp_path)
    engine, want = load(tmp_path), theirs(model, sequences)
    assert worst(engine.logits(sequences), want) <= 1e-4
    assert worst(mutate(engine, build).logits(sequences), want) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_parity_notices_a_chunk_that_is_off_by_one_position(
    family: str, tmp_path: Path, lively: Any, load: Any, theirs: Any, sequences: Any
) -> None:
    model = lively(FAMILIES[family]())
    model.save_pretrained(tmp_path)
    engine, want = load(tmp_path), theirs(model, sequences)
    for shift in (-1, 1):
        assert worst(engine.logits(sequences, [20], shift), want) > 1e-3
