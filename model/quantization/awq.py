"""AWQ (Lin et al. 2023): 4-bit integers, interleaved in words, a scale and a zero for each group of inputs."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.quantization.formats import Scaled
from model.quantization.integers import IntegerMatrix, Integers, check_cut, fields

BITS, PER_WORD = 4, 8
PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where a word has each of its rows, counted from its lowest bits


@dataclass(frozen=True, slots=True, eq=False)
class AwqMatrix(IntegerMatrix):
    """Words int32 [columns, rows / 8] hold eight rows each, as do those of zeros [groups, rows / 8].

    Scales are [groups, rows]. Source: `packing_utils.py` of AutoAWQ 0.2.9, layout GEMM: its weights have the same bits.
    """

    words: Tensor
    zeros: Tensor
    scales: Tensor

    @classmethod
    def build(cls, group: int | None, parts: Mapping[str, Tensor]) -> "AwqMatrix":
        """From the tensors by their names in the file. Raises ValueError where they do not fit together."""
        matrix = cls(parts["qweight"], parts["qzeros"], parts["scales"])
        if (matrix.words.dtype, matrix.zeros.dtype) != (torch.int32, torch.int32):
            raise ValueError(f"qweight and qzeros are {matrix.words.dtype} and {matrix.zeros.dtype}, not int32")
        rows, columns = matrix.shape
        group = group or columns
        expected = columns // group, rows
        if columns % group or {tuple(matrix.scales.shape), (len(matrix.zeros), _rows(matrix.zeros))} != {expected}:
            found = f"scales {tuple(matrix.scales.shape)} and qzeros {tuple(matrix.zeros.shape)}"
            raise ValueError(f"{found} do not fit {rows} x {columns} weights in groups of {group}")
        return matrix

    @property
    def shape(self) -> tuple[int, int]:
        return _rows(self.words), len(self.words)

    @property
    def scaled(self) -> Scaled:
        groups = len(self.scales)
        return Scaled("I", BITS, self.shape[1] // groups if groups > 1 else 0)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.words, self.zeros, self.scales

    @property
    def kind(self) -> Hashable:
        return self.scaled

    def integers(self) -> Integers:
        codes, zeros = (fields(part, BITS)[..., PLACES].flatten(1).T for part in (self.words, self.zeros))
        return Integers(BITS, codes.contiguous(), self.scales.T.float(), zeros.float())

    def narrow(self, dim: int, start: int, length: int) -> "AwqMatrix":
        if dim == 0:
            check_cut(dim, start, length, PER_WORD)
            words, zeros = (p.narrow(1, start // PER_WORD, length // PER_WORD) for p in (self.words, self.zeros))
            return AwqMatrix(words, zeros, self.scales.narrow(1, start, length))
        words, group = self.words.narrow(0, start, length), self.scaled.group
        if not group:
            return AwqMatrix(words, self.zeros, self.scales)
        check_cut(dim, start, length, group)
        zeros, scales = (part.narrow(0, start // group, length // group) for part in (self.zeros, self.scales))
        return AwqMatrix(words, zeros, scales)

    def above(self, others: Sequence["AwqMatrix"]) -> "AwqMatrix":
        return AwqMatrix(*(torch.cat(parts, dim=1) for parts in zip(*(m.parts for m in (self, *others)), strict=True)))


def _rows(words: Tensor) -> int:
    return words.shape[1] * PER_WORD
