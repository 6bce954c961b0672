"""Hugging Face's config.json -> features and names, one short function per family."""

import re
from collections.abc import Callable, Mapping, Set
from typing import Any

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
from model.families.huggingface_names import (
    ATTENTION,
    GEMMA_NORMS,
    GPT2,
    LAYERS,
    LLAMA_NORMS,
    MIXTRAL_EXPERTS,
    MLP,
    QWEN3_EXPERTS,
    named,
)
from model.weights import Names, Source

Json = Mapping[str, Any]

_IGNORABLE = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|\.attn\.masked_bias$")
_NEUTRAL = {  # fields that would ask for a computation that no layer here does, were their values others
    "partial_rotary_factor": 1.0,
    "scale_attn_by_inverse_layer_idx": False,
    "use_bidirectional_attention": False,
}
_DEFAULT_THETA = {"mixtral": 1e6, "gemma3_text": 1e6}  # elsewhere 10,000
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
    for fields in (config, _rope_fields(config)):
        for key, value in _NEUTRAL.items():
            if fields.get(key) not in (None, value):
                raise UnsupportedModel(f"{key} {fields[key]!r} is not supported")
    features, names = _FAMILIES[family](config)
    ignorable = _IGNORABLE
    if features.tied_head:
        ignorable = re.compile(f"{_IGNORABLE.pattern}|^lm_head\\.weight$")
    if family == "gpt2" and not any(name.startswith("transformer.") for name in tensor_names):
        names = {ours: Source(source.name.removeprefix("transformer."), source.read) for ours, source in names.items()}
    return Description(features, names, ignorable)


def _llama(config: Json, **features: Any) -> tuple[ModelConfig, Names]:
    """Also SmolLM2, Mistral (windows) and Qwen2 (biases): what differs is in the fields or in the tensors."""
    return _decoder(config, **features), named(LAYERS)


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
    return _decoder(config, experts=experts, windows=windows), named(ATTENTION | LLAMA_NORMS | QWEN3_EXPERTS)


def _mixtral(config: Json) -> tuple[ModelConfig, Names]:
    experts = Experts(config["num_local_experts"], config["num_experts_per_tok"], config["intermediate_size"], True)
    features = _decoder(config, experts=experts, windows=_every_layer(config))
    return features, named(ATTENTION | LLAMA_NORMS | MIXTRAL_EXPERTS)


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
    return _decoder(config, **defaults | features), named(ATTENTION | GEMMA_NORMS | MLP)


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
    return features, GPT2


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
    return features, {}


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
    theta = fields.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA.get(config["model_type"], 10000.0)
    return Rope(theta, _scaling(config))


def _rope_fields(config: Json) -> Json:
    fields: Json = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return fields


def _scaling(config: Json) -> RopeScaling | None:
    return _scaling_of(_rope_fields(config), config)


def _scaling_of(fields: Json, config: Json) -> RopeScaling | None:
    trained = config.get("max_position_embeddings", 0)
    name = "original_max_position_embeddings"
    original = config.get(name) or fields.get(name) or trained
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
            return _yarn(fields, original, trained)
        case other:
            raise UnsupportedModel(f"rope_type {other!r} is not supported")


def _yarn(fields: Json, original: int, trained: int) -> YarnScaling:
    return YarnScaling(
        factor=fields["factor"] or trained / original,
        original_context=original,
        beta_fast=fields.get("beta_fast") or 32.0,
        beta_slow=fields.get("beta_slow") or 1.0,
        attention_factor=fields.get("attention_factor"),
        mscale=fields.get("mscale"),
        mscale_all_dim=fields.get("mscale_all_dim"),
        truncate=fields.get("truncate", True),
    )
