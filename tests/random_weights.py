"""A checkpoint that holds whatever a model asks for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.quantization import PackedTensor


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """Whatever is asked for, biases, norms of queries and rope divisors too; of one name always the same."""

    prefix: str = ""

    def below(self, name: str) -> "RandomWeights":
        return RandomWeights(f"{self.prefix}{name}.")

    def __contains__(self, name: str) -> bool:
        return True

    def matrix(self, name: str, shape: tuple[int, int]) -> Tensor | PackedTensor:
        return self._of(name, *shape) / shape[1] ** 0.5

    def vector(self, name: str, size: int) -> Tensor:
        return 1.0 + 0.1 * self._of(name, size)

    def _of(self, name: str, *shape: int) -> Tensor:
        draw = torch.Generator().manual_seed(sum(ord(c) * (i + 1) for i, c in enumerate(self.prefix + name)))
        return torch.randn(*shape, generator=draw, device="cpu")
