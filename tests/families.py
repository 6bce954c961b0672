"""A tiny random model of every family: transformers' own, for the paper's decoder one of torch's, and their files."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file
from torch import Tensor, nn

WINDOW = 9
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
NO_HEAD_DIM = {key: value for key, value in SIZES.items() if key != "head_dim"}
GEMMA = {**SIZES, "sliding_window": WINDOW, "head_dim": 24, "query_pre_attn_scalar": 20}
QWEN3_MOE = {**SIZES, "num_experts": 5, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "bos_token_id": 0}
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
WIDTH, HEADS, HIDDEN, LAYERS, VOCABULARY = 64, 4, 96, 3, 96
PAPER = {
    "model_type": "transformer",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 128,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-5,
}


def lively(config: hf.PretrainedConfig, seed: int = 0) -> hf.PreTrainedModel:
    """A model whose logits are of the order of real ones, so that a fault cannot hide in them."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"  # the other forms know no soft caps
    model = hf.AutoModelForCausalLM.from_config(config).float().eval()
    is_gemma = config.model_type.startswith("gemma")
    for name, parameter in model.named_parameters():
        _fill(name, parameter.data, is_gemma)
    return model


def _fill(name: str, weight: Tensor, is_gemma: bool) -> None:
    """Matrices keep the size of what they multiply, times 1.5; norms lie around 1, which Gemma stores as 0."""
    if name.endswith("bias"):
        weight.normal_(std=0.3)
    elif weight.dim() == 1:
        weight.uniform_(0.5, 1.5).sub_(1.0 if is_gemma else 0.0)
    elif "embed" in name or "wte" in name or "wpe" in name or "lm_head" in name:
        weight.normal_(std=2.0 * weight.shape[-1] ** -0.5)
    else:
        columns = weight.shape[0] if ".c_" in name else weight.shape[-1]  # GPT-2 stores [in, out]
        weight.normal_(std=1.5 * columns**-0.5)


class Paper(nn.Module):
    """Section 3 of the paper: post-norm, ReLU, sines and cosines, embeddings scaled by the root of the width."""

    def __init__(self, is_tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, "relu", batch_first=True, norm_first=False)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        encoding = torch.zeros(len(ids), WIDTH)
        for position in range(len(ids)):
            for i in range(WIDTH // 2):
                angle = position / 10000 ** (2 * i / WIDTH)
                encoding[position, 2 * i] = math.sin(angle)
                encoding[position, 2 * i + 1] = math.cos(angle)
        mask = nn.Transformer.generate_square_subsequent_mask(len(ids))
        x = self.embedding(ids) * math.sqrt(WIDTH) + encoding
        return self.head(self.layers(x[None], mask=mask, is_causal=True)[0])


def lively_paper(is_tied: bool = False) -> Paper:
    torch.manual_seed(3)
    model = Paper(is_tied).train()  # the inference path of torch's layer is another implementation
    for name, parameter in model.named_parameters():
        is_norm = "norm" in name and name.endswith("weight")
        parameter.data.uniform_(0.5, 1.5) if is_norm else parameter.data.normal_(std=1.5 * WIDTH**-0.5)
    return model


def write_paper(model: Paper, folder: Path) -> None:
    is_tied = model.head.weight is model.embedding.weight
    (folder / "config.json").write_text(json.dumps(PAPER | {"tie_word_embeddings": is_tied}))
    save_file(_own_names(model), folder / "model.safetensors")


def _own_names(model: Paper) -> dict[str, Tensor]:
    """The tensors under the names of our own format."""
    tensors = {"embedding.weight": model.embedding.weight, "head.weight": model.head.weight}
    if model.head.weight is model.embedding.weight:
        del tensors["head.weight"]
    for i, layer in enumerate(model.layers.layers):
        attention = layer.self_attn
        for name, weight, bias in zip(
            "qkv", attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
        ):
            tensors |= {f"layers.{i}.attention.{name}.weight": weight, f"layers.{i}.attention.{name}.bias": bias}
        modules = {
            "attention.out": attention.out_proj,
            "attention_norm": layer.norm1,
            "mlp.up": layer.linear1,
            "mlp.down": layer.linear2,
            "mlp_norm": layer.norm2,
        }
        for name, module in modules.items():
            tensors |= {f"layers.{i}.{name}.weight": module.weight, f"layers.{i}.{name}.bias": module.bias}
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
