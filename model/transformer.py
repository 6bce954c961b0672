"""The Transformer: from token ids to the logits of the next ones, top to bottom as in the paper."""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from model.config import ModelConfig, NormPlace, Positions, Rope
from model.experts import MixtureOfExperts
from model.inputs import Inputs
from model.kernels import Kernels
from model.kernels.reference import Prepared, Span
from model.kv_cache import KVCache
from model.layers import Attention, AttentionInputs, Embedding, Mlp, NormLayer, Residual, Stream
from model.linear import Adapted, Linear
from model.parallel import ALONE, Ranks
from model.positions import Rotary, sinusoids
from model.weights import Weights

# Shapes: T rows of the step, D model width, V vocabulary


class Layer:
    """Attention, then the MLP, each with its residual."""

    def __init__(self, weights: Weights, index: int, config: ModelConfig, kernels: Kernels, ranks: Ranks) -> None:
        self.attention = Attention(weights.below("attention"), index, config, kernels)
        self.around_attention = Residual(weights, "attention", config, kernels, ranks)
        self.mlp: Mlp | MixtureOfExperts = (
            MixtureOfExperts(weights.below("mlp"), config.experts, config, kernels)
            if config.experts
            else Mlp(weights.below("mlp"), config.hidden_dim, config, kernels)
        )
        self.around_mlp = Residual(weights, "mlp", config, kernels, ranks)

    def __call__(self, stream: Stream, inputs: AttentionInputs) -> Stream:
        stream = self.around_attention(stream, lambda x: self.attention(x, inputs))
        return self.around_mlp(stream, lambda x: self.mlp(x, inputs.adapted))

    def projections(self) -> Iterator[Linear]:
        """Those that adapters may add to: the router and the experts of a mixture are none of them."""
        yield from (self.attention.qkv, self.attention.out)
        if isinstance(self.mlp, Mlp):
            yield from (self.mlp.up, self.mlp.down)


class Transformer:
    """A decoder-only Transformer ("Attention Is All You Need" without the encoder, and what has come since).

    Where several ranks share it, `config` and `weights` are of this one's heads and width.
    """

    def __init__(self, config: ModelConfig, weights: Weights, kernels: Kernels, ranks: Ranks = ALONE) -> None:
        self.config = config
        self.kernels = kernels
        self.ranks = ranks
        self.embedding = Embedding(weights, config, kernels, ranks)
        self.learned_positions = self._learned_positions(weights)
        self.rotaries = self._rotaries(weights)
        self.layers = [Layer(weights.below(f"layers.{i}"), i, config, kernels, ranks) for i in range(config.num_layers)]
        is_normed = config.norm_place is NormPlace.POST
        self.norm = None if is_normed else NormLayer(weights.below("norm"), config.dim, config, kernels)
        self.head = (
            None if config.tied_head else Linear(weights, {"head": len(self.embedding.words)}, config.dim, kernels)
        )

    def __call__(self, inputs: Inputs, cache: KVCache) -> Tensor:
        """Stores the keys and values of every row and gives the last layer's hidden states [T, D]."""
        return self.forward(self.rows(inputs), inputs.spans, cache)

    def rows(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """What `forward` needs of each row: id, position, slot, and the cosines and sines of each kind of rope."""
        angles = (rotary(inputs.positions) for rotary in self.rotaries.values())
        return inputs.ids, inputs.positions, inputs.slots, *chain.from_iterable(angles)

    def forward(
        self, rows: tuple[Tensor, ...], spans: list[Span], cache: KVCache, adapted: Sequence[Adapted] = ()
    ) -> Tensor:
        """The same, made of rows and operations of the kernels only, so that it can be recorded without adapters."""
        ids, positions, slots, *tables = rows
        angles = dict(zip(self.rotaries, zip(tables[::2], tables[1::2], strict=True), strict=True))
        stream: Stream = self._embed(ids, positions), None
        for index, layer in enumerate(self.layers):
            layer_angles = angles.get(self.config.rope_of(index))
            stream = layer(stream, AttentionInputs(layer_angles, cache.layers[index], slots, spans, adapted))
        return self.norm.of_sum(stream)[1] if self.norm else stream[0]

    def projections(self) -> Iterator[Linear]:
        """Those that adapters may add to, layer by layer."""
        return chain.from_iterable(layer.projections() for layer in self.layers)

    def logits(self, x_TD: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the token after each row, fp32 [T, V]."""
        logits = self.head(x_TD) if self.head else self.kernels.linear(x_TD, self.embedding.weight)
        logits = self.ranks.gather(logits.float(), self.config.vocab_size)
        cap = self.config.logits_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _embed(self, ids_T: Tensor, positions_T: Tensor) -> Tensor:
        x_TD = self.embedding(ids_T)
        match self.config.positions:
            case Positions.LEARNED:
                assert self.learned_positions is not None
                return self.kernels.add(x_TD, self.kernels.embed(positions_T, self.learned_positions))
            case Positions.SINUSOIDAL:
                return x_TD + sinusoids(positions_T, self.config.dim).to(x_TD.dtype)
            case Positions.ROTARY:
                return x_TD

    def _learned_positions(self, weights: Weights) -> Prepared | None:
        if self.config.positions is not Positions.LEARNED:
            return None
        matrix = weights.matrix("positions.weight", (self.config.context_length, self.config.dim))
        return self.kernels.prepare(matrix)

    def _rotaries(self, weights: Weights) -> dict[Rope, Rotary]:
        """One for each kind of layer."""
        if self.config.positions is not Positions.ROTARY:
            return {}
        head_dim, name = self.config.head_dim, "rope_divisors.weight"
        divisors = weights.vector(name, head_dim // 2) if name in weights else None
        ropes = {self.config.rope_of(layer) for layer in range(self.config.num_layers)}
        context_length, device = self.config.context_length, self.kernels.device
        return {rope: Rotary(rope, head_dim, context_length, device, divisors) for rope in ropes}
