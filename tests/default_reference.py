"""The default model as transformers computes it, in fp32, from what the gguf package reads and dequantises."""

from collections.abc import Iterator

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def reference_model(file: gguf.GGUFReader) -> LlamaForCausalLM:
    """Nothing of ours has a hand in it."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(dict(weights(file)), strict=False)  # the tied head has no tensor of its own
    return model.eval()


def weights(file: gguf.GGUFReader) -> Iterator[tuple[str, torch.Tensor]]:
    for tensor in file.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        match tensor.name.split("."):
            case ["token_embd", _]:
                yield "model.embed_tokens.weight", values
            case ["output_norm", _]:
                yield "model.norm.weight", values
            case ["blk", layer, name, _]:
                if name in ("attn_q", "attn_k"):  # GGUF interleaves the two halves of each head's rows
                    values = values.view(-1, 32, 2, 576).transpose(1, 2).reshape(-1, 576)
                yield f"model.layers.{layer}.{NAMES[name]}.weight", values
