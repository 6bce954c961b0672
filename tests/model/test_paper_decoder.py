"""The decoder of "Attention Is All You Need" without its encoder half, against torch's own layers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, HEADS, HIDDEN, LAYERS, VOCABULARY = 64, 4, 96, 3, 96
CONFIG = {
    "model_type": "transformer",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 64,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-5,
}


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


def ours(model: Paper) -> dict[str, Tensor]:
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


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_decoder_of_the_paper_gives_the_logits_of_torchs_own_layers(
    is_tied: bool, tmp_path: Path, load: Any, agree: Any, sequences: list[list[int]]
) -> None:
    torch.manual_seed(3)
    model = Paper(is_tied).train()  # the inference path of torch's layer is another implementation
    for name, parameter in model.named_parameters():
        is_norm = "norm" in name and name.endswith("weight")
        parameter.data.uniform_(0.5, 1.5) if is_norm else parameter.data.normal_(std=1.5 * WIDTH**-0.5)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": is_tied}))
    save_file(ours(model), tmp_path / "model.safetensors")
    with torch.no_grad():
        agree(load(tmp_path), [model(torch.tensor(tokens)) for tokens in sequences])
