"""The checkpoint's tensors under this model's names, handed out one by one until none is left."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model.quantization import PackedTensor

Matrix = Tensor | PackedTensor


class WeightsError(ValueError):
    """The checkpoint does not hold the tensors that its configuration promises."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one of our tensors comes from: a name in the checkpoint, and how to read it.

    `{}` in names stands for a layer, then an expert; `read` is also given the last of these numbers.
    """

    name: str
    read: Callable[[Matrix, int], Matrix] = lambda matrix, _: matrix


Names = dict[str, Source]  # our name -> source; the last part of both is "weight" or "bias"


@dataclass(slots=True)
class Weights:
    """A view of the checkpoint below `prefix`. Views share what they have taken and what they missed."""

    tensors: dict[str, Matrix]
    names: Names
    prefix: str = ""
    taken: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    on_take: Callable[[int], None] = lambda size: None  # told the bytes of each tensor that is taken

    def below(self, name: str) -> "Weights":
        return replace(self, prefix=f"{self.prefix}{name}.")

    def __contains__(self, name: str) -> bool:
        return self._locate(name)[0].name in self.tensors

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        """The tensor, packed or dense; a missing one is noted for `finish` and stood in for."""
        source, number = self._locate(name)
        if source.name not in self.tensors:
            self.missing.append(source.name)
            return torch.empty(shape)
        tensor = self.tensors[source.name]
        if source.name not in self.taken:
            self.taken.add(source.name)
            self.on_take(tensor.nbytes)
        matrix = source.read(tensor, number)
        if tuple(matrix.shape) != shape:
            raise WeightsError(f"tensor {source.name} has shape {tuple(matrix.shape)}, the configuration says {shape}")
        return matrix

    def vector(self, name: str, size: int) -> Tensor:
        """The tensor in fp32."""
        vector = self.matrix(name, (size,))
        assert isinstance(vector, Tensor), "formats pack matrices only"
        return vector.float()

    def finish(self, ignorable: re.Pattern[str] | None = None) -> None:
        """Raises unless every tensor was found and every tensor of the checkpoint was used."""
        unused = self.tensors.keys() - self.taken
        leftover = sorted(name for name in unused if not (ignorable and ignorable.search(name)))
        if self.missing or leftover:
            lists = [("missing", self.missing), ("unknown", leftover)]
            raise WeightsError("; ".join(f"{what} tensors: {_abridged(names)}" for what, names in lists if names))

    def _locate(self, name: str) -> tuple[Source, int]:
        full = self.prefix + name
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", full)
        source = self.names.get(re.sub(r"(?<=\.)\d+(?=\.)", "{}", full), Source(full))
        return Source(source.name.format(*numbers), source.read), int(numbers[-1]) if numbers else 0


def _abridged(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
