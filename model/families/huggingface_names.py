"""What the tensors of Hugging Face's checkpoints are called, and how some of them are stored."""

from collections.abc import Callable, Mapping

import torch

from model.weights import Matrix, Names, Source, WeightsError

# Tensor names without their last part, ours on the left. `{}` is the layer, then the expert.
ATTENTION = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
}
LLAMA_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
GEMMA_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
MLP = {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
LAYERS = ATTENTION | LLAMA_NORMS | MLP
QWEN3_EXPERTS = {
    "mlp.router": "mlp.gate",
    "mlp.experts.{}.gate": "mlp.experts.{}.gate_proj",
    "mlp.experts.{}.up": "mlp.experts.{}.up_proj",
    "mlp.experts.{}.down": "mlp.experts.{}.down_proj",
}
MIXTRAL_EXPERTS = {
    "mlp.router": "block_sparse_moe.gate",
    "mlp.experts.{}.gate": "block_sparse_moe.experts.{}.w1",
    "mlp.experts.{}.up": "block_sparse_moe.experts.{}.w3",
    "mlp.experts.{}.down": "block_sparse_moe.experts.{}.w2",
}


def named(layer: Mapping[str, str]) -> Names:
    """The names of the Llama lineage, for the tensors that its layers have."""
    table = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    table |= {f"layers.{{}}.{ours}": f"model.layers.{{}}.{theirs}" for ours, theirs in layer.items()}
    return {
        f"{ours}.{last}": Source(f"{theirs}.{last}") for ours, theirs in table.items() for last in ("weight", "bias")
    }


def _transposed(matrix: Matrix, _: int) -> Matrix:
    if not isinstance(matrix, torch.Tensor):
        raise WeightsError("quantization_config is not supported for gpt2, which stores [in, out]")
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


GPT2 = _gpt2_names()
