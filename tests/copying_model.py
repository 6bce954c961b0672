"""A Llama of one layer that repeats its prompt, by construction: what it says shows whose keys and values it read."""

import math
from pathlib import Path

import torch
from support import TINY, byte_tokenizer, write_model

PERIOD = 64  # tokens: the answer to a prompt of so many is the prompt, again and again
CODE = 64  # numbers that stand for a token, nearly orthogonal to those of any other
DIM = 3 * CODE  # of the token at hand; of the token copied; the first of the rest is always one
SHARPNESS = 60.0  # of attention: other positions weigh less than exp(-60)
CONTRAST = 0.27  # the copied token is e**12 times as likely as the next: certain at temperature 1, one of many at 2

CONFIG = TINY | {
    "hidden_size": DIM,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": CODE,
    "rope_theta": 100.0,
}


def write_copying_model(folder: Path) -> Path:
    codes = torch.randn(CONFIG["vocab_size"], CODE, generator=torch.Generator().manual_seed(0)).sign()
    embedding, head = torch.zeros(CONFIG["vocab_size"], DIM), torch.zeros(CONFIG["vocab_size"], DIM)
    embedding[:, :CODE], embedding[:, 2 * CODE] = codes, 1.0
    head[:, CODE : 2 * CODE] = codes * CONTRAST
    # All tokens have one norm, so that the first norm divides by a constant and the products below undo it.
    scale = math.sqrt((CODE + 1) / DIM)
    queries, keys, values, out = (torch.zeros(*shape) for shape in [(CODE, DIM)] * 3 + [(DIM, CODE)])
    # Rotated by their positions, a query and a key agree in every frequency at one distance: that of the token to copy.
    frequencies = CONFIG["rope_theta"] ** (-torch.arange(0, CODE, 2) / CODE)
    angles = (PERIOD - 1) * frequencies
    queries[: CODE // 2, 2 * CODE] = SHARPNESS * math.sqrt(CODE) * scale
    keys[: CODE // 2, 2 * CODE], keys[CODE // 2 :, 2 * CODE] = angles.cos() * scale, angles.sin() * scale
    values[:, :CODE] = torch.eye(CODE) * scale
    out[CODE : 2 * CODE] = torch.eye(CODE)
    layer = {
        "self_attn.q_proj": queries,
        "self_attn.k_proj": keys,
        "self_attn.v_proj": values,
        "self_attn.o_proj": out,
        "mlp.gate_proj": torch.zeros(CONFIG["intermediate_size"], DIM),
        "mlp.up_proj": torch.zeros(CONFIG["intermediate_size"], DIM),
        "mlp.down_proj": torch.zeros(DIM, CONFIG["intermediate_size"]),
        "input_layernorm": torch.ones(DIM),
        "post_attention_layernorm": torch.ones(DIM),
    }
    tensors = {f"model.layers.0.{name}.weight": tensor for name, tensor in layer.items()}
    tensors |= {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(DIM), "lm_head.weight": head}
    return write_model(folder, CONFIG, tensors)


def ids(text: str) -> list[int]:
    """The tokens of a prompt of exactly one period, without the library's own."""
    tokens: list[int] = byte_tokenizer().encode(text, add_special_tokens=False).ids
    assert len(tokens) == PERIOD, f"a prompt of {len(tokens)} tokens is not repeated"
    return tokens
