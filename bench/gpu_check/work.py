"""What a step has to move and to compute at least, from the checkpoint's header: weights, keys and values, products.

Activations are not counted: a card may keep them in its caches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

from bench.gpu_check.loading import Part
from model.kv_cache import BLOCK_SIZE, block_bytes
from model.loading import OpenModel
from model.weights import unnumbered

GATHERED = {"embedding.weight", "positions.weight"}  # some rows of them, which come to nothing


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes between the device's memory and its processors; operations, a multiplication and an addition being two."""

    bytes: float
    flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)


class Steps:
    """The least work of a model's steps."""

    def __init__(self, model: OpenModel) -> None:
        self.model = model
        self.config = model.config
        self._ours = {source.name: ours for ours, source in model.description.names.items()}

    def work(self, parts: list[Part]) -> Work:
        config, experts, rows = self.config, self.config.experts, sum(part.rows for part in parts)
        common, head = self._common, self._head
        work = Work(common.bytes, common.flops * rows) + Work(head.bytes, head.flops * len(parts))
        if experts is not None:  # all that a step can reach with so many rows
            share = experts.per_token / experts.count
            work += Work(self._experts.bytes * min(1.0, rows * share), self._experts.flops * share * rows)
        windows = [config.window(layer) for layer in range(config.num_layers)]
        return sum((self.attention(part, window) for part in parts for window in windows), work)

    def attention(self, part: Part, window: int | None) -> Work:
        """Of one layer: every position that is seen is read once for the chunk, its own are also written."""
        config, first = self.config, part.context - part.rows
        widest = window or part.context
        read = min(part.context, widest + part.rows - 1)
        seen = sum(min(position + 1, widest) for position in range(first, part.context))
        return Work((read + part.rows) * self.position_bytes, 4.0 * config.num_heads * config.head_dim * seen)

    @property
    def position_bytes(self) -> float:
        """Of a key and a value in one layer."""
        return block_bytes(self.config, self.model.kv_dtype) / BLOCK_SIZE / self.config.num_layers

    @cached_property
    def _common(self) -> Work:
        """What every row meets, but for the head; operations of one row."""
        return self._sum(lambda name: name not in GATHERED and not name.startswith("head.") and ".experts." not in name)

    @cached_property
    def _head(self) -> Work:
        return self._sum(lambda name: name == ("embedding.weight" if self.config.tied_head else "head.weight"))

    @cached_property
    def _experts(self) -> Work:
        """Of all of them together."""
        return self._sum(lambda name: ".experts." in name)

    def _sum(self, counts: Callable[[str], bool]) -> Work:
        """Of the tensors whose names, as we call them, count."""
        ours = {info: self._ours.get(unnumbered(info.name), info.name) for info in self.model.checkpoint.infos}
        infos = [info for info, name in ours.items() if counts(name)]
        prepared = self.model.kernels.prepared_bytes
        flops = sum(2.0 * prod(info.shape) for info in infos if len(info.shape) > 1)
        return Work(sum(prepared(info.shape, info.dtype) for info in infos), flops)
