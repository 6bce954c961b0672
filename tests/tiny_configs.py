"""Tiny models that differ in every feature of the forward pass, as configurations."""

from dataclasses import replace

from model.config import ModelConfig, Norm, NormPlace, Positions, Rope

LLAMA = ModelConfig(
    family="llama",
    vocab_size=96,
    dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=96,
    context_length=64,
)
GEMMA = replace(
    LLAMA,
    family="gemma",
    norm_place=NormPlace.SANDWICH,
    norm_offset=1.0,
    windows=(9, None),
    local_rope=Rope(500.0),
    attention_softcap=2.0,
    logits_softcap=9.0,
    embedding_scale=8.0,
    tied_head=True,
)
GPT2 = replace(LLAMA, family="gpt2", norm=Norm.LAYER, gated=False, positions=Positions.LEARNED, num_kv_heads=4)
PAPER = replace(GPT2, family="paper", positions=Positions.SINUSOIDAL, norm_place=NormPlace.POST)
