"""Hugging Face's config.json -> features and names, one short function per family."""

import re
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch

from model.config import (
    Activation,
    DynamicScaling,
    Experts,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    Norm,
    NormPlace,
    Positions,
    Rope,
    RopeScaling,
    YarnScaling,
)
from model.families.description import Description, UnsupportedModel
from model.weights import Matrix, Names, Source

Json = Mapping[str, Any]

_IGNORABLE = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|\.attn\.masked_bias$")
_ACTIVATIONS = {
    "relu": Activation.RELU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_tanh": Activation.GELU_TANH,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
}


def describe(config: Json, tensor_names: Set[str]) -> Description:
    """Features and names of the model that `config` (config.json) describes."""
    family = config["model_type"]
    if family not in _FAMILIES:
        raise UnsupportedModel(f"model_type {family!r} is not supported; supported are {', '.join(sorted(_FAMILIES))}")
    features, names = _FAMILIES[family](config)
    ignorable = _IGNORABLE
    if features.tied_head:
        ignorable = re.compile(f"{_IGNORABLE.pattern}|^lm_head\\.weight$")
    if family == "gpt2" and not any(name.startswith("transformer.") for name in tensor_names):
        names = {ours: Source(source.name.removeprefix("transformer."), source.read) for ours, source in names.items()}
    return Description(features, names, ignorable)


def _llama(config: Json, **features: Any) -> tuple[ModelConfig, Names]:
    """Also SmolLM2, Mistral (windows) and Qwen2 (biases): what differs is in the fields or in the tensors."""
    return _decoder(config, **features), _names(_LAYERS)


def _qwen3_moe(config: Json) -> tuple[ModelConfig, Names]:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise UnsupportedModel("qwen3_moe with dense layers between the sparse ones is not supported")
    experts = Experts(
        count=config.get("num_experts") or config["num_local_experts"],
        per_token=config["num_experts_per_tok"],
        hidden_dim=config["moe_intermediate_size"],
        normalize=config.get("norm_topk_prob", False),
    )
    windows = _every_layer(config) if config.get("use_sliding_window", False) else ()
    return _decoder(config, experts=experts, windows=windows), _names(_ATTENTION | _LLAMA_NORMS | _QWEN3_EXPERTS)


def _mixtral(config: Json) -> tuple[ModelConfig, Names]:
    experts = Experts(config["num_local_experts"], config["num_experts_per_tok"], config["intermediate_size"], True)
    features = _decoder(config, experts=experts, windows=_every_layer(config))
    return features, _names(_ATTENTION | _LLAMA_NORMS | _MIXTRAL_EXPERTS)


def _gemma(config: Json, **features: Any) -> tuple[ModelConfig, Names]:
    defaults = {
        "activation": _activation(config, "hidden_activation"),
        "norm_offset": 1.0,
        "norm_place": NormPlace.SANDWICH,
        "embedding_scale": config["hidden_size"] ** 0.5,
        "attention_scale": config["query_pre_attn_scalar"] ** -0.5,
        "attention_softcap": config.get("attn_logit_softcapping"),
        "logits_softcap": config.get("final_logit_softcapping"),
        "tied_head": config.get("tie_word_embeddings", True),
    }
    return _decoder(config, **defaults | features), _names(_ATTENTION | _GEMMA_NORMS | _MLP)


def _gemma2(config: Json) -> tuple[ModelConfig, Names]:
    return _gemma(config, windows=_windows(config, lambda layer: layer % 2 == 0))


def _gemma3(config: Json) -> tuple[ModelConfig, Names]:
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    return _gemma(
        config,
        windows=_windows(config, lambda layer: (layer + 1) % pattern != 0),
        rope=_rope(config, layer_type="full_attention"),
        local_rope=_rope(config, layer_type="sliding_attention"),
    )


def _gpt2(config: Json) -> tuple[ModelConfig, Names]:
    dim, heads = config["n_embd"], config["n_head"]
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise UnsupportedModel("gpt2 with scale_attn_by_inverse_layer_idx is not supported")
    features = ModelConfig(
        family="gpt2",
        vocab_size=config["vocab_size"],
        dim=dim,
        num_layers=config["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        hidden_dim=config.get("n_inner") or 4 * dim,
        context_length=config["n_positions"],
        norm=Norm.LAYER,
        norm_eps=config["layer_norm_epsilon"],
        activation=_activation(config, "activation_function"),
        gated=False,
        positions=Positions.LEARNED,
        attention_scale=None if config.get("scale_attn_weights", True) else 1.0,
        tied_head=config.get("tie_word_embeddings", True),
    )
    return features, _GPT2


def _transformer(config: Json) -> tuple[ModelConfig, Names]:
    """The decoder of Vaswani et al. 2017 without its encoder half; a format of ours, with our tensor names."""
    features = _decoder(
        config,
        norm=Norm.LAYER,
        norm_eps=config.get("layer_norm_eps", 1e-5),
        norm_place=NormPlace.POST,
        activation=_activation(config, "hidden_act", "relu"),
        gated=False,
        positions=Positions.SINUSOIDAL,
        embedding_scale=config["hidden_size"] ** 0.5,
    )
    return features, {name: Source(name) for name in _both(_OURS)}


_FAMILIES: dict[str, Callable[[Json], tuple[ModelConfig, Names]]] = {
    "transformer": _transformer,
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": lambda config: _llama(config, windows=_every_layer(config)),
    "qwen2": lambda config: _llama(config, windows=_qwen_windows(config)),
    "qwen3": lambda config: _llama(config, windows=_qwen_windows(config)),
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
}


def _decoder(config: Json, **features: Any) -> ModelConfig:
    """The fields that nearly all families share, overridden by what the family says."""
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    scaling = _scaling(config)
    stretch = scaling.factor if isinstance(scaling, DynamicScaling) else 1
    shared = {
        "family": config["model_type"],
        "vocab_size": config["vocab_size"],
        "dim": dim,
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or dim // heads,
        "hidden_dim": config["intermediate_size"],
        "context_length": int(config["max_position_embeddings"] * stretch),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "tied_head": config.get("tie_word_embeddings", False),
    }
    if "activation" not in features:
        shared["activation"] = _activation(config, "hidden_act", "silu")
    if "rope" not in features:
        shared["rope"] = _rope(config)
    return ModelConfig(**shared | features)


def _activation(config: Json, key: str, default: str | None = None) -> Activation:
    name = config.get(key) or default or config["hidden_act"]
    if name not in _ACTIVATIONS:
        raise UnsupportedModel(f"{key} {name!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _windows(config: Json, is_windowed: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Per layer; `layer_types` says which where it is given, `is_windowed` where a file is older than that field."""
    size = config.get("sliding_window")
    if size is None:
        return ()
    layers = range(config["num_hidden_layers"])
    types = config.get("layer_types") or ["sliding_attention" if is_windowed(i) else "full_attention" for i in layers]
    return tuple(size if kind == "sliding_attention" else None for kind in types)


def _every_layer(config: Json) -> tuple[int | None, ...]:
    return _windows(config, lambda layer: True)


def _qwen_windows(config: Json) -> tuple[int | None, ...]:
    if not config.get("use_sliding_window", False):
        return ()
    return _windows(config, lambda layer: bool(layer >= config["max_window_layers"]))


def _rope(config: Json, layer_type: str | None = None) -> Rope:
    fields = _rope_fields(config)
    if layer_type is not None and layer_type in fields:
        return Rope(fields[layer_type]["rope_theta"], _scaling_of(fields[layer_type], config))
    if layer_type == "sliding_attention":
        return Rope(config.get("rope_local_base_freq", 10000.0))
    return Rope(fields.get("rope_theta") or config.get("rope_theta") or 10000.0, _scaling(config))


def _rope_fields(config: Json) -> Json:
    fields: Json = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return fields


def _scaling(config: Json) -> RopeScaling | None:
    return _scaling_of(_rope_fields(config), config)


def _scaling_of(fields: Json, config: Json) -> RopeScaling | None:
    trained = config.get("max_position_embeddings", 0)
    original = fields.get("original_max_position_embeddings") or trained
    match fields.get("rope_type") or fields.get("type") or "default":
        case "default":
            return None
        case "linear":
            return LinearScaling(fields["factor"])
        case "dynamic":
            return DynamicScaling(fields["factor"], trained)
        case "llama3":
            return Llama3Scaling(fields["factor"], fields["low_freq_factor"], fields["high_freq_factor"], original)
        case "yarn":
            return _yarn(fields, original)
        case other:
            raise UnsupportedModel(f"rope_type {other!r} is not supported")


def _yarn(fields: Json, original: int) -> YarnScaling:
    return YarnScaling(
        factor=fields["factor"],
        original_context=original,
        beta_fast=fields.get("beta_fast") or 32.0,
        beta_slow=fields.get("beta_slow") or 1.0,
        attention_factor=fields.get("attention_factor"),
        mscale=fields.get("mscale"),
        mscale_all_dim=fields.get("mscale_all_dim"),
        truncate=fields.get("truncate", True),
    )


# Tensor names without their last part, ours on the left. `{}` is the layer, then the expert.
_ATTENTION = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
}
_LLAMA_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
_MLP = {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
_LAYERS = _ATTENTION | _LLAMA_NORMS | _MLP
_QWEN3_EXPERTS = {
    "mlp.router": "mlp.gate",
    "mlp.experts.{}.gate": "mlp.experts.{}.gate_proj",
    "mlp.experts.{}.up": "mlp.experts.{}.up_proj",
    "mlp.experts.{}.down": "mlp.experts.{}.down_proj",
}
_MIXTRAL_EXPERTS = {
    "mlp.router": "block_sparse_moe.gate",
    "mlp.experts.{}.gate": "block_sparse_moe.experts.{}.w1",
    "mlp.experts.{}.up": "block_sparse_moe.experts.{}.w3",
    "mlp.experts.{}.down": "block_sparse_moe.experts.{}.w2",
}
_OURS = [
    "embedding",
    "head",
    *(
        f"layers.{{}}.{name}"
        for name in (
            *("attention.q", "attention.k", "attention.v", "attention.out"),
            *("attention_norm", "mlp.up", "mlp.down", "mlp_norm"),
        )
    ),
]


def _both(names: list[str]) -> list[str]:
    return [f"{name}.{last}" for name in names for last in ("weight", "bias")]


def _names(layer: Mapping[str, str]) -> Names:
    """The names of the Llama lineage, for the tensors that its layers have."""
    table = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    table |= {f"layers.{{}}.{ours}": f"model.layers.{{}}.{theirs}" for ours, theirs in layer.items()}
    return {
        f"{ours}.{last}": Source(f"{theirs}.{last}") for ours, theirs in table.items() for last in ("weight", "bias")
    }


def _transposed(matrix: Matrix, _: int) -> Matrix:
    assert isinstance(matrix, torch.Tensor)
    return matrix.T if matrix.dim() == 2 else matrix  # GPT-2 stores [in, out]


def _third(index: int) -> Callable[[Matrix, int], Matrix]:
    def read(matrix: Matrix, _: int) -> Matrix:
        """Queries, keys and values lie side by side in one matrix."""
        stacked = _transposed(matrix, 0)
        assert isinstance(stacked, torch.Tensor)
        return stacked.chunk(3)[index]

    return read


def _gpt2_names() -> Names:
    layer = {
        "attention.q": Source("attn.c_attn", _third(0)),
        "attention.k": Source("attn.c_attn", _third(1)),
        "attention.v": Source("attn.c_attn", _third(2)),
        "attention.out": Source("attn.c_proj", _transposed),
        "attention_norm": Source("ln_1"),
        "mlp.up": Source("mlp.c_fc", _transposed),
        "mlp.down": Source("mlp.c_proj", _transposed),
        "mlp_norm": Source("ln_2"),
    }
    table = {f"layers.{{}}.{ours}": Source(f"transformer.h.{{}}.{s.name}", s.read) for ours, s in layer.items()}
    table |= {"embedding": Source("transformer.wte"), "positions": Source("transformer.wpe")}
    table |= {"norm": Source("transformer.ln_f"), "head": Source("lm_head")}
    return {
        f"{ours}.{last}": Source(f"{source.name}.{last}", source.read)
        for ours, source in table.items()
        for last in ("weight", "bias")
    }


_GPT2 = _gpt2_names()
