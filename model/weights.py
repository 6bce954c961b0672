"""The checkpoint's tensors under this model's names, handed out one by one until none is left."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model.quantization import PackedMatrix

Matrix = Tensor | PackedMatrix

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class WeightsError(ValueError):
    """The checkpoint does not hold the tensors that its configuration promises."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one of our tensors comes from: a name in the checkpoint, and how to read it.

    `{}` in names stands for a layer, then an expert; `read` is also given the last of these numbers. It gives a view,
    so that what another rank holds is not read; `arrange` may copy, and is given whole heads only, as many as are ours.
    """

    name: str
    read: Callable[[Matrix, int], Matrix] = lambda matrix, _: matrix
    arrange: Callable[[Matrix], Matrix] = lambda matrix: matrix


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a tensor that is ours where several ranks share a model: some rows (dim 0) or columns (dim 1).

    With a length of 0 it is a bias that another rank adds.
    """

    dim: int
    start: int
    length: int
    whole: int  # what all ranks' parts are cut from

    def uncut(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What a part of this shape is cut from."""
        return (*shape[: self.dim], self.whole, *shape[self.dim + 1 :])


Names = dict[str, Source]  # our name -> source; the last part of both is "weight" or "bias"


@dataclass(slots=True)
class Weights:
    """A view of the checkpoint below `prefix`. Views share what they have taken and what they missed."""

    tensors: dict[str, Matrix]
    names: Names
    prefix: str = ""
    taken: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    on_take: Callable[[int], None] = lambda size: None  # told the bytes of what is taken
    cuts: Mapping[str, Cut] = field(default_factory=dict)  # by our names as in `Names`; what is absent is whole

    def below(self, name: str) -> "Weights":
        return replace(self, prefix=f"{self.prefix}{name}.")

    def __contains__(self, name: str) -> bool:
        return self._locate(name)[0].name in self.tensors

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        """The tensor, packed or dense, or the part of it that is ours; `shape` is that part's.

        A missing one is noted for `finish` and stood in for.
        """
        source, number = self._locate(name)
        if source.name not in self.tensors:
            self.missing.append(source.name)
            return torch.empty(shape)
        self.taken.add(source.name)
        matrix = source.read(self.tensors[source.name], number)
        cut = self.cuts.get(unnumbered(self.prefix + name))
        whole = cut.uncut(shape) if cut else shape
        if tuple(matrix.shape) != whole:
            raise WeightsError(f"tensor {source.name} has shape {tuple(matrix.shape)}, the configuration says {whole}")
        if cut and not cut.length:
            return torch.zeros(shape)
        own = source.arrange(matrix.narrow(cut.dim, cut.start, cut.length) if cut else matrix)
        self.on_take(own.nbytes)
        return own

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
        numbers = _NUMBER.findall(full)
        source = self.names.get(unnumbered(full), Source(full))
        return replace(source, name=source.name.format(*numbers)), int(numbers[-1]) if numbers else 0


def unnumbered(name: str) -> str:
    """A tensor's name with `{}` for its layer and expert."""
    return _NUMBER.sub("{}", name)


def _abridged(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
