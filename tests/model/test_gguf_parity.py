"""Every architecture from GGUF gives the logits of transformers, dense and packed.

`convert` writes files as llama.cpp's converter does; transformers' own GGUF reader confirms that in a test.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as hf
from gguf import GGMLQuantizationType as Type
from random_adapters import shapes_of, write_adapter
from rank_threads import agree
from safetensors.torch import load_file
from torch import Tensor
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from model.adapters import read_adapter
from model.batch import Batch, Chunk
from model.inputs import pack
from model.kv_cache import BLOCK_SIZE, KVCache
from model.linear import Adapted

ARCHITECTURES = {"qwen3_moe": "qwen3moe", "gemma3_text": "gemma3", "mixtral": "llama", "mistral": "llama"}
NORMS_OR_VECTORS = 1
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
NO_HEAD_DIM = {key: value for key, value in SIZES.items() if key != "head_dim"}
GEMMA = {**SIZES, "sliding_window": 9, "head_dim": 24, "query_pre_attn_scalar": 24}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 0}
GPT2["eos_token_id"] = 0
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scaled(rope_type: str, **fields: Any) -> hf.LlamaConfig:
    return hf.LlamaConfig(**SIZES, rope_parameters={"rope_theta": 10000.0, "rope_type": rope_type, **fields})


MODELS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**SIZES),
    "llama with biases": lambda: hf.LlamaConfig(**SIZES, attention_bias=True),
    "llama, tied": lambda: hf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama 3.1": lambda: scaled(**LLAMA3, original_max_position_embeddings=32),
    "llama, linear": lambda: scaled("linear", factor=4.0),
    "llama, yarn": lambda: scaled("yarn", factor=4.0, original_max_position_embeddings=16),
    "llama, yarn in full": lambda: scaled(
        "yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.3, beta_fast=8.0, beta_slow=2.0
    ),
    "mistral": lambda: hf.MistralConfig(**SIZES, sliding_window=None),
    "mixtral": lambda: hf.MixtralConfig(**SIZES, num_local_experts=5, num_experts_per_tok=2),
    "qwen2": lambda: hf.Qwen2Config(**NO_HEAD_DIM),
    "qwen3": lambda: hf.Qwen3Config(**SIZES, tie_word_embeddings=True),
    "qwen3moe": lambda: hf.Qwen3MoeConfig(
        **SIZES, num_experts=5, moe_intermediate_size=32, num_experts_per_tok=2, norm_topk_prob=True
    ),
    "gemma2": lambda: hf.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=9.0),
    "gemma3": lambda: hf.Gemma3TextConfig(**{**GEMMA, "num_hidden_layers": 7}),
    "gemma3 with scaled rope": lambda: hf.Gemma3TextConfig(
        **{**GEMMA, "num_hidden_layers": 7},
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 20000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
}


def convert(model: hf.PreTrainedModel, folder: Path, form: Callable[[str], Type] = lambda name: Type.F32) -> Path:
    """Writes the model as GGUF; `form` says how each matrix is stored."""
    model.save_pretrained(folder)
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{i}" for i in range(config.vocab_size)])
    if architecture == "gpt2":
        describe_gpt2(writer, config)
    else:
        describe_decoder(writer, config, architecture)
    for name, tensor in converted(config, architecture, load_file(folder / "model.safetensors")):
        is_plain = tensor.dim() == NORMS_OR_VECTORS or "gate_inp" in name or "position_embd" in name
        stored = Type.F32 if is_plain else form(name)
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def describe_gpt2(writer: gguf.GGUFWriter, config: hf.PretrainedConfig) -> None:
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def describe_decoder(writer: gguf.GGUFWriter, config: hf.PretrainedConfig, architecture: str) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if architecture == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(config.head_dim)
    describe_rope(writer, config.rope_parameters)
    describe_experts(writer, config)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)


def describe_rope(writer: gguf.GGUFWriter, parameters: dict[str, Any]) -> None:
    """Llama 3's scaling is no metadata but a tensor."""
    if local := parameters.get("sliding_attention"):
        writer.add_rope_freq_base_swa(local["rope_theta"])
    rope = parameters.get("full_attention", parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "attention_factor" in rope:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def describe_experts(writer: gguf.GGUFWriter, config: hf.PretrainedConfig) -> None:
    if count := getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        writer.add_expert_count(count)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def converted(
    config: hf.PretrainedConfig, architecture: str, tensors: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Names are the gguf package's own; the values change for llama, Gemma and GPT-2, and experts are stacked."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    for name, tensor in stacked(tensors).items():
        stem, _, last = name.rpartition(".")
        theirs = names.get_name(stem)
        assert theirs is not None, f"no GGUF name for {name}"
        if architecture == "llama" and ".q_proj." in name:
            tensor = interleaved(tensor, config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            tensor = interleaved(tensor, config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if architecture == "gpt2" and ".c_" in name and last == "weight":
            tensor = tensor.T.contiguous()
        yield f"{theirs}.{last}", tensor
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_divisors(config)


def stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """...experts.0.w1.weight, ...experts.1.w1.weight -> ...experts.w1.weight [experts, out, in]."""
    single: dict[str, Tensor] = {}
    groups: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        before, experts, after = name.partition(".experts.")
        if not experts:
            single[name] = tensor
            continue
        index, _, rest = after.partition(".")
        layers = before.removeprefix("model.").replace("block_sparse_moe", "feed_forward")  # as Mixtral's own files
        groups.setdefault(f"{layers}.experts.{rest}", {})[int(index)] = tensor
    merged = {name: torch.stack([group[i] for i in range(len(group))]) for name, group in groups.items()}
    return single | {name if "feed_forward" in name else f"model.{name}": tensor for name, tensor in merged.items()}


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Rows i and i + d/2 of a head become neighbours, as the rotation of the original Llama code wants them."""
    half = tensor.shape[0] // heads // 2
    order = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in range(2)]
    return tensor[order]


def llama3_divisors(config: hf.PretrainedConfig) -> Tensor:
    rope, divisors = config.rope_parameters, []
    for i in range(config.head_dim // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * i / config.head_dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        keep = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        keep = min(max(keep, 0.0), 1.0)
        divisors.append(1 / (keep + (1 - keep) / rope["factor"]))
    return torch.tensor(divisors)


@pytest.mark.parametrize("model_name", MODELS)
def test_an_architecture_gives_the_logits_of_transformers(
    model_name: str, tmp_path: Path, lively: Any, parity: Any
) -> None:
    model = lively(MODELS[model_name]())
    parity(convert(model, tmp_path), model)


@pytest.mark.parametrize("model_name", ["llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "gpt2"])
def test_transformers_reads_the_same_tensors_from_our_files(model_name: str, tmp_path: Path, lively: Any) -> None:
    model = lively(MODELS[model_name]())
    read = load_gguf_checkpoint(convert(model, tmp_path), return_tensors=True, model_to_load=model)["tensors"]
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert read.keys() == model.state_dict().keys() - tied
    for name, tensor in read.items():
        assert torch.allclose(tensor, model.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize("form", [Type.F16, Type.BF16])
@pytest.mark.parametrize("model_name", ["llama", "qwen3moe", "gemma3", "gpt2"])
def test_half_precision_tensors_are_computed_in_fp32(
    model_name: str, form: Type, tmp_path: Path, lively: Any, parity: Any
) -> None:
    model = lively(MODELS[model_name]())
    path = convert(model, tmp_path, lambda name: form)
    as_stored(model, lambda name: form)
    parity(path, model)


def mixed(name: str) -> Type:
    """Formats differ within q, k, v and within gate and up, as in the K_M recipes."""
    return Type.Q8_0 if any(part in name for part in ("attn_v", "ffn_up", "token_embd")) else Type.Q4_1


@pytest.mark.parametrize(
    ("model_name", "form"),
    [
        ("llama", lambda name: Type.Q8_0),
        ("llama, tied", lambda name: Type.Q4_1),
        ("llama with biases", mixed),
        ("mixtral", mixed),
        ("qwen2", mixed),
        ("qwen3moe", lambda name: Type.Q4_0),
        ("gpt2", lambda name: Type.Q5_1),
    ],
)
def test_packed_tensors_are_what_they_dequantise_to(
    model_name: str, form: Callable[[str], Type], tmp_path: Path, lively: Any, parity: Any, theirs: Any, sequences: Any
) -> None:
    model = lively(MODELS[model_name]())
    path = convert(model, tmp_path, form)
    before = theirs(model, sequences)[0]
    as_stored(model, form)
    assert float((theirs(model, sequences)[0] - before).abs().max()) > 1e-2, "packing changed nothing"
    parity(path, model, fast_tolerance=1e-2)  # against packed matrices, activations have 16 bits per 32 values


def as_stored(model: hf.PreTrainedModel, form: Callable[[str], Type]) -> None:
    """Rounds the model's matrices as its file does. Rows are packed one by one, so their order does not matter."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == NORMS_OR_VECTORS or is_router(name) or "wpe" in name:
            continue
        is_transposed = ".c_" in name
        matrix = parameter.data.T if is_transposed else parameter.data
        if "gate_up" in name:
            gate, up = matrix.chunk(2, dim=1)
            rounded = torch.cat([round_to(form("ffn_gate"), gate), round_to(form("ffn_up"), up)], dim=1)
        else:
            rounded = round_to(form(gguf_name(name)), matrix)
        parameter.data.copy_(rounded.T if is_transposed else rounded)


def is_router(name: str) -> bool:
    return name.endswith("mlp.gate.weight")


def gguf_name(name: str) -> str:
    known = {"v_proj": "attn_v", "up_proj": "ffn_up", "embed_tokens": "token_embd", "wte": "token_embd"}
    return next((theirs for part, theirs in known.items() if part in name), name)


def round_to(form: Type, matrix: Tensor) -> Tensor:
    packed = gguf.quants.quantize(np.ascontiguousarray(matrix.numpy()), form)
    return torch.from_numpy(gguf.quants.dequantize(packed, form)).view(matrix.shape)


@pytest.mark.parametrize("name", ["llama with biases", "mixtral", "qwen3", "gpt2"])
def test_ranks_say_together_what_one_says(name: str, tmp_path: Path, lively: Any) -> None:
    agree(convert(lively(MODELS[name]()), tmp_path, mixed), sizes=(2,))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
@torch.inference_mode()
def test_an_adapter_adds_to_the_same_rows_whatever_file_the_model_is_from(
    name: str, tmp_path: Path, lively: Any, load: Any, theirs: Any, sequences: list[list[int]]
) -> None:
    """Llama's converter reorders the rows of queries and keys; PEFT has them as transformers does."""
    model = lively(MODELS[name]())
    transformer = load(convert(model, tmp_path)).transformer
    shapes = shapes_of(transformer)
    adapter = read_adapter(write_adapter(tmp_path / "adapter", shapes, 1), transformer)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for module in shapes:
        down, up = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        weight = model.get_submodule(module).weight
        weight += 2 * (up @ down).T if name == "gpt2" else 2 * up @ down
    for tokens, want in zip(sequences, theirs(model, sequences), strict=True):
        blocks = list(range(-(-len(tokens) // BLOCK_SIZE)))
        cache = KVCache(transformer.config, len(blocks), torch.float32, torch.device("cpu"))
        inputs = pack(Batch([Chunk(tokens, 0, len(tokens), blocks, len(tokens), None)]), torch.device("cpu"))
        adapted = [Adapted(slice(0, len(tokens)), adapter.updates)]
        rows = transformer.forward(transformer.rows(inputs), inputs.spans, cache, adapted)
        assert (transformer.logits(rows) - want).abs().max() < 1e-4
