"""GGUF metadata -> features and names, one short function per architecture.

Keys and tensor names follow the GGUF specification (ggml/docs/gguf.md) and what its converter writes.
"""

from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any

import torch

from model.config import (
    Activation,
    Experts,
    LinearScaling,
    ModelConfig,
    Norm,
    NormPlace,
    Positions,
    Rope,
    RopeScaling,
    YarnScaling,
)
from model.families.description import Description, UnsupportedModel
from model.quantization import PackedTensor
from model.weights import Matrix, Names, Source

Metadata = Mapping[str, Any]

# Where these are, the metadata of the older converters is silent: the 27B models divide by width per head instead.
_GEMMA2_27B_LAYERS, _GEMMA3_27B_LAYERS = 46, 62
_SOFTMAX = 1  # a value of expert_gating_func


class _Fields:
    """The metadata below the architecture's own prefix."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.family: str = metadata["general.architecture"]

    def __getitem__(self, key: str) -> Any:
        return self.metadata[f"{self.family}.{key}"]

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.family}.{key}", default)


def describe(metadata: Metadata, tensor_names: Set[str]) -> Description:
    """Features and names of the model whose key/value pairs `metadata` holds."""
    fields = _Fields(metadata)
    if fields.family not in _FAMILIES:
        supported = ", ".join(sorted(_FAMILIES))
        raise UnsupportedModel(f"general.architecture {fields.family!r} is not supported; supported are {supported}")
    config, names = _FAMILIES[fields.family](fields, tensor_names)
    _refuse_others(fields, config)
    return Description(config, names)


def _refuse_others(fields: _Fields, config: ModelConfig) -> None:
    """Raises where a key asks for a computation that no layer here does."""
    neutral = {
        "attention.causal": True,
        "attention.scale": config.attention_scale,
        "attention.sliding_window": next((window for window in config.windows if window), 0),
        "attention.sliding_window_pattern": None,
        "attention.value_length": config.head_dim,
        "expert_gating_func": _SOFTMAX,
        "expert_shared_count": 0,
        "expert_weights_norm": True,
        "expert_weights_scale": 1.0,
        "rope.dimension_count": config.head_dim,
        "rope.scaling.attn_factor": 1.0,
        "rope.scaling.yarn_ext_factor": 1.0,
        "rope.scaling.yarn_log_multiplier": 0.0,
    }
    for key, value in neutral.items():
        if fields.get(key, value) != value:
            raise UnsupportedModel(f"{fields.family}.{key} {fields[key]!r} is not supported; {value!r} is")


def _llama(fields: _Fields, tensor_names: Set[str]) -> tuple[ModelConfig, Names]:
    """Also SmolLM2, Mistral and Mixtral. The converter reorders the rows of q and k for interleaved rotation."""
    experts = _experts(fields, fields.get("feed_forward_length"))
    windows = _windows(fields, lambda layer: True) if fields.get("attention.sliding_window") else ()
    config = _decoder(fields, tensor_names, experts=experts, windows=windows)
    names = _names(_ATTENTION | _NORMS | _MLP) | _expert_names(experts)
    for name in ("q", "k"):
        for last in ("weight", "bias"):
            ours = f"layers.{{}}.attention.{name}.{last}"
            names[ours] = Source(names[ours].name, arrange=partial(_half_rotated, config.head_dim))
    return config, names


def _qwen(fields: _Fields, tensor_names: Set[str]) -> tuple[ModelConfig, Names]:
    experts = _experts(fields, fields.get("expert_feed_forward_length"))
    names = _names(_ATTENTION | _NORMS | _MLP) | _expert_names(experts)
    return _decoder(fields, tensor_names, experts=experts), names


def _gemma(fields: _Fields, tensor_names: Set[str], wide_layers: int, **features: Any) -> tuple[ModelConfig, Names]:
    dim, heads = fields["embedding_length"], fields["attention.head_count"]
    head_dim = dim // heads if fields["block_count"] == wide_layers else _head_dim(fields)
    config = _decoder(
        fields,
        tensor_names,
        activation=Activation.GELU_TANH,
        norm_place=NormPlace.SANDWICH,
        embedding_scale=dim**0.5,
        attention_scale=head_dim**-0.5,
        attention_softcap=fields.get("attn_logit_softcapping"),
        logits_softcap=fields.get("final_logit_softcapping"),
        **features,
    )
    return config, _names(_ATTENTION | _GEMMA_NORMS | _MLP)


def _gemma2(fields: _Fields, tensor_names: Set[str]) -> tuple[ModelConfig, Names]:
    windows = _windows(fields, lambda layer: layer % 2 == 0)
    return _gemma(fields, tensor_names, _GEMMA2_27B_LAYERS, windows=windows)


def _gemma3(fields: _Fields, tensor_names: Set[str]) -> tuple[ModelConfig, Names]:
    windows = _windows(fields, lambda layer: (layer + 1) % 6 != 0)
    local_rope = Rope(fields.get("rope.freq_base_swa", 10000.0))
    return _gemma(fields, tensor_names, _GEMMA3_27B_LAYERS, windows=windows, local_rope=local_rope)


def _gpt2(fields: _Fields, tensor_names: Set[str]) -> tuple[ModelConfig, Names]:
    config = _decoder(
        fields,
        tensor_names,
        norm=Norm.LAYER,
        norm_eps=fields["attention.layer_norm_epsilon"],
        activation=Activation.GELU_TANH,
        gated=False,
        positions=Positions.LEARNED,
    )
    names = _names(_ATTENTION | _NORMS | _MLP | {"positions": "position_embd"})
    for index, part in enumerate("qkv"):
        for last in ("weight", "bias"):
            names[f"layers.{{}}.attention.{part}.{last}"] = Source(f"blk.{{}}.attn_qkv.{last}", partial(_third, index))
    return config, names


_FAMILIES: dict[str, Callable[[_Fields, Set[str]], tuple[ModelConfig, Names]]] = {
    "llama": _llama,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "qwen3moe": _qwen,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
}


def _decoder(fields: _Fields, tensor_names: Set[str], **features: Any) -> ModelConfig:
    heads = fields["attention.head_count"]
    shared = {
        "family": fields.family,
        "vocab_size": fields.get("vocab_size") or len(fields.metadata["tokenizer.ggml.tokens"]),
        "dim": fields["embedding_length"],
        "num_layers": fields["block_count"],
        "num_heads": heads,
        "num_kv_heads": fields.get("attention.head_count_kv", heads),
        "head_dim": _head_dim(fields),
        "hidden_dim": fields.get("feed_forward_length", 0),
        "context_length": fields["context_length"],
        "norm_eps": fields.get("attention.layer_norm_rms_epsilon", 1e-6),
        "rope": Rope(fields.get("rope.freq_base", 10000.0), _scaling(fields)),
        "tied_head": "output.weight" not in tensor_names,
    }
    return ModelConfig(**shared | features)


def _head_dim(fields: _Fields) -> int:
    return int(fields.get("attention.key_length") or fields["embedding_length"] // fields["attention.head_count"])


def _experts(fields: _Fields, hidden_dim: int | None) -> Experts | None:
    """The families known here normalise the shares of the chosen experts; the format does not say."""
    if not fields.get("expert_count"):
        return None
    return Experts(fields["expert_count"], fields["expert_used_count"], hidden_dim or 0, normalize=True)


def _windows(fields: _Fields, is_windowed: Callable[[int], bool]) -> tuple[int | None, ...]:
    size = fields["attention.sliding_window"]
    return tuple(size if is_windowed(layer) else None for layer in range(fields["block_count"]))


def _scaling(fields: _Fields) -> RopeScaling | None:
    factor = fields.get("rope.scaling.factor") or fields.get("rope.scale_linear")  # the older converters' key
    match fields.get("rope.scaling.type", "linear" if factor else "none"):
        case "none":
            return None
        case "linear":
            return LinearScaling(factor or fields["rope.scaling.factor"])
        case "yarn":
            return YarnScaling(
                fields["rope.scaling.factor"],
                fields.get("rope.scaling.original_context_length") or fields["context_length"],
                beta_fast=fields.get("rope.scaling.yarn_beta_fast", 32.0),
                beta_slow=fields.get("rope.scaling.yarn_beta_slow", 1.0),
                attention_factor=fields.get("rope.scaling.yarn_attn_factor"),
            )
        case other:
            raise UnsupportedModel(f"rope.scaling.type {other!r} is not supported")


def _half_rotated(head_dim: int, matrix: Matrix) -> Matrix:
    """Undoes the converter's order: within a head, row 2i + j there is row i + j * d/2 here, packed or not."""
    order = torch.arange(matrix.shape[0]).view(-1, head_dim // 2, 2).transpose(1, 2).flatten()
    if isinstance(matrix, torch.Tensor):
        return matrix[order]
    assert isinstance(matrix, PackedTensor)
    return matrix.select_rows(order)


def _third(index: int, matrix: Matrix, _: int) -> Matrix:
    """Queries, keys and values lie one below the other in one matrix."""
    rows = matrix.shape[0] // 3
    return matrix.narrow(0, index * rows, rows)


def _expert(count: int, matrix: Matrix, index: int) -> Matrix:
    """One expert of a stack; packed ones lie one below the other in one matrix."""
    if isinstance(matrix, torch.Tensor):
        return matrix[index]
    assert isinstance(matrix, PackedTensor)
    return matrix.split(count)[index]


# Tensor names without their last part, ours on the left. `{}` is the layer, then the expert.
_ATTENTION = {
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.out": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
}
_NORMS = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}
_GEMMA_NORMS = _NORMS | {"attention_output_norm": "post_attention_norm", "mlp_output_norm": "post_ffw_norm"}
_MLP = {"mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down", "mlp.router": "ffn_gate_inp"}
_EXPERTS = {"gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"}


def _names(layer: Mapping[str, str]) -> Names:
    table = {"embedding": "token_embd", "norm": "output_norm", "head": "output", "rope_divisors": "rope_freqs"}
    table |= {name: theirs for name, theirs in layer.items() if name == "positions"}
    table |= {f"layers.{{}}.{name}": f"blk.{{}}.{theirs}" for name, theirs in layer.items() if name != "positions"}
    return {
        f"{ours}.{last}": Source(f"{theirs}.{last}") for ours, theirs in table.items() for last in ("weight", "bias")
    }


def _expert_names(experts: Experts | None) -> Names:
    if experts is None:
        return {}
    read = partial(_expert, experts.count)
    return {
        f"layers.{{}}.mlp.experts.{{}}.{ours}.weight": Source(f"blk.{{}}.{theirs}.weight", read)
        for ours, theirs in _EXPERTS.items()
    }
