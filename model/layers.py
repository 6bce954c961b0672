"""The pieces of a layer: norms, attention, the MLP, and the residual around each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig, Norm, NormPlace
from model.kernels import Kernels
from model.kernels.reference import Angles, AttentionShape, LayerCache, Span
from model.linear import Adapted, Linear
from model.parallel import Ranks
from model.weights import Weights

# Shapes: T rows of the step, D model width, H query heads, G KV heads, d head size

Stream = tuple[Tensor, Tensor | None]  # what the layers so far sum up to, and the last addend, still to be added


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What attention needs beside the hidden states, for one layer."""

    angles: Angles | None  # of the layer's rotary positions
    cache: LayerCache
    slots: Tensor  # where each row's key and value are stored, [T]
    spans: list[Span]
    adapted: Sequence[Adapted]


class NormLayer:
    """Root-mean-square or layer norm over D, or over the size of a head."""

    def __init__(self, weights: Weights, size: int, config: ModelConfig, kernels: Kernels) -> None:
        self.kernels = kernels
        self.kind = config.norm
        self.eps = config.norm_eps
        self.weight = (weights.vector("weight", size) + config.norm_offset).to(kernels.device)
        self.bias = weights.vector("bias", size).to(kernels.device) if "bias" in weights else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.kind is Norm.RMS:
            return self.kernels.rms_norm(x, self.weight, self.eps)
        return self.kernels.layer_norm(x, self.weight, self.bias, self.eps)

    def of_sum(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """The stream's sum, and its norm."""
        x_TD, y_TD = stream
        if y_TD is not None and self.kind is Norm.RMS:
            return self.kernels.add_rms_norm(x_TD, y_TD, self.weight, self.eps)
        sum_TD = x_TD if y_TD is None else self.kernels.add(x_TD, y_TD)
        return sum_TD, self(sum_TD)


class Attention:
    """Scaled dot-product attention over the KV cache, several query heads sharing each key/value head."""

    def __init__(self, weights: Weights, layer: int, config: ModelConfig, kernels: Kernels) -> None:
        self.kernels = kernels
        self.sizes = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.head_dim = config.head_dim
        widths = [heads * config.head_dim for heads in self.sizes]
        self.qkv = Linear(weights, dict(zip("qkv", widths, strict=True)), config.dim, kernels)
        self.out = Linear(weights, {"out": config.dim}, widths[0], kernels)
        self.q_norm, self.k_norm = (
            NormLayer(weights.below(name), config.head_dim, config, kernels) if f"{name}.weight" in weights else None
            for name in ("q_norm", "k_norm")
        )
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.shape = AttentionShape(scale, config.window(layer), config.attention_softcap)

    def __call__(self, x_TD: Tensor, inputs: AttentionInputs) -> Tensor:
        heads = self.qkv(x_TD, inputs.adapted).view(len(x_TD), sum(self.sizes), self.head_dim)
        q_THd, k_TGd, v_TGd = torch.split(heads, self.sizes, dim=1)
        if self.q_norm and self.k_norm:
            q_THd, k_TGd = self.q_norm(q_THd), self.k_norm(k_TGd)
        q_THd = self.kernels.rotate_and_store(q_THd, k_TGd, v_TGd, inputs.angles, inputs.cache, inputs.slots)
        o_THd = self.kernels.attention(q_THd, inputs.cache, inputs.spans, self.shape)
        return self.out(o_THd.flatten(1), inputs.adapted)


class Mlp:
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, weights: Weights, hidden_dim: int, config: ModelConfig, kernels: Kernels) -> None:
        self.kernels = kernels
        self.gated = config.gated
        self.activation = config.activation.value
        names = ("gate", "up") if config.gated else ("up",)
        self.up = Linear(weights, dict.fromkeys(names, hidden_dim), config.dim, kernels)
        self.down = Linear(weights, {"down": config.dim}, hidden_dim, kernels)

    def __call__(self, x_TD: Tensor, adapted: Sequence[Adapted] = ()) -> Tensor:
        return self.down(self.activate(self.up(x_TD, adapted)), adapted)

    def activate(self, x_TF: Tensor) -> Tensor:
        return (self.kernels.gate if self.gated else self.kernels.activate)(x_TF, self.activation)


class Residual:
    """The norms and the addition around a sublayer, in the order that the model's `norm_place` says.

    Of the sublayer each rank computes a part.
    """

    def __init__(self, weights: Weights, name: str, config: ModelConfig, kernels: Kernels, ranks: Ranks) -> None:
        def norm(place: str) -> NormLayer:
            return NormLayer(weights.below(f"{name}_{place}"), config.dim, config, kernels)

        self.kernels = kernels
        self.ranks = ranks
        self.place = config.norm_place
        self.norm = norm("norm")
        self.output_norm = norm("output_norm") if self.place is NormPlace.SANDWICH else None

    def __call__(self, stream: Stream, sublayer: Callable[[Tensor], Tensor]) -> Stream:
        """The addition is left to the norm that comes next, which reads the same rows."""
        if self.place is NormPlace.POST:
            x_TD, _ = stream
            return self.norm(self.kernels.add(x_TD, self.ranks.sum(sublayer(x_TD)))), None
        x_TD, normed_TD = self.norm.of_sum(stream)
        y_TD = self.ranks.sum(sublayer(normed_TD))
        return x_TD, self.output_norm(y_TD) if self.output_norm else y_TD


class Embedding:
    """Token ids to vectors; the same matrix may serve as the head. A rank has some words' rows."""

    def __init__(self, weights: Weights, config: ModelConfig, kernels: Kernels, ranks: Ranks) -> None:
        self.kernels = kernels
        self.ranks = ranks
        self.words = ranks.piece(config.vocab_size)
        self.weight = kernels.prepare(weights.matrix("embedding.weight", (len(self.words), config.dim)))
        # Gemma multiplies by the scale rounded to the weights' precision; in fp32 that is the scale itself.
        self.scale = torch.tensor(config.embedding_scale).to(kernels.dtype).item()

    def __call__(self, ids_T: Tensor) -> Tensor:
        x_TD = self.kernels.embed(ids_T, self.weight) if self.ranks.size == 1 else self._shared(ids_T)
        return x_TD if self.scale == 1.0 else self.kernels.scale(x_TD, self.scale)

    def _shared(self, ids_T: Tensor) -> Tensor:
        """Each row from the rank that has it: the others add zeros."""
        places_T = ids_T - self.words.start
        is_own = (places_T >= 0) & (places_T < len(self.words))
        x_TD = self.kernels.embed(torch.where(is_own, places_T, 0), self.weight)
        return self.ranks.sum(torch.where(is_own[:, None], x_TD, 0.0))
