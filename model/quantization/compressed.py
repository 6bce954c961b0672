"""Integers as compressed-tensors stores them: bytes in rows (W8A8), or words in rows (W4A16 and W8A16)."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.quantization.formats import WORD_BITS, Scaled
from model.quantization.integers import IntegerMatrix, Integers, check_cut, fields
from model.quantization.rounding import Rounding


@dataclass(frozen=True, slots=True)
class CompressedLayout:
    """What `quantization_config` says of all matrices."""

    bits: int
    group: int | None  # columns under a scale; None: all
    is_symmetric: bool
    rounds_input: bool


@dataclass(frozen=True, slots=True, eq=False)
class CompressedMatrix(IntegerMatrix):
    """Codes int8 [rows, columns], or in words int32 [rows, columns / n], lowest first, then half of the range more.

    Scales are [rows, groups], or [1] for the matrix. Zeros are int8 of the same shape, or words [rows / n, groups].
    Source: `pack_to_int32` and `dequantize` of compressed-tensors.
    """

    layout: CompressedLayout
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    groups: Tensor | None  # of each column [columns], where they are ordered by activation
    input_scale: Tensor | None  # of one number

    @classmethod
    def build(cls, layout: CompressedLayout, parts: Mapping[str, Tensor]) -> "CompressedMatrix":
        """From the tensors by their names in the file. Raises ValueError where they do not fit together."""
        codes = parts["weight_packed"] if "weight_packed" in parts else parts["weight"]
        zeros, groups, input_scale = (parts.get(n) for n in ("weight_zero_point", "weight_g_idx", "input_scale"))
        if codes.dtype not in (torch.int8, torch.int32) or (codes.dtype == torch.int8 and layout.bits != 8):
            raise ValueError(f"weights of {layout.bits} bits are {codes.dtype}")
        if layout.is_symmetric == (zeros is not None):
            raise ValueError(f"symmetric is {layout.is_symmetric}, but weight_zero_point says otherwise")
        if input_scale is not None and input_scale.numel() != 1:
            raise ValueError(f"input_scale has shape {tuple(input_scale.shape)}, which is not one number")
        scales = parts["weight_scale"]
        scales = scales.reshape(-1, 1) if scales.dim() < 2 else scales
        matrix = cls(layout, codes, scales, zeros, groups, input_scale)
        rows, columns = matrix.shape
        count = columns // layout.group if layout.group else 1
        if tuple(scales.shape) not in ((rows, count), (1, 1)) or columns % count:
            raise ValueError(f"weight_scale {tuple(scales.shape)} does not fit {rows} x {columns} weights")
        if groups is not None and not groups.is_meta and not 0 <= int(groups.min()) <= int(groups.max()) < count:
            raise ValueError(f"weight_g_idx does not name one of {count} groups for each column")
        return matrix

    @property
    def per_word(self) -> int:
        return 1 if self.codes.dtype == torch.int8 else WORD_BITS // self.layout.bits

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1] * self.per_word

    @property
    def scaled(self) -> Scaled:
        """Where rows are rounded whole, ranks cannot share their columns: they are one group then."""
        group = self.layout.group if self.groups is None else self.per_word
        if self.layout.rounds_input and self.input_scale is None:
            group = self.shape[1]
        return Scaled("I", self.layout.bits, group or 0)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        every = self.codes, self.scales, self.zeros, self.groups, self.input_scale
        return tuple(part for part in every if part is not None)

    @property
    def kind(self) -> Hashable:
        return self.layout, self.rounding, None if self.groups is None else tuple(self.groups.tolist())

    @property
    def rounding(self) -> Rounding | None:
        if not self.layout.rounds_input:
            return None
        return Rounding(torch.int8, scale=None if self.input_scale is None else float(self.input_scale))

    def integers(self) -> Integers:
        bits, (rows, columns) = self.layout.bits, self.shape
        scales = self.scales.float().expand(rows, -1)
        if self.per_word == 1:
            zeros = None if self.zeros is None else self.zeros.float().reshape(self.scales.shape).expand(rows, -1)
            return Integers(bits, self.codes, scales, zeros)
        codes, half = fields(self.codes, bits).reshape(rows, columns), 2.0 ** (bits - 1)
        if self.zeros is None:
            return Integers(bits, codes, scales, torch.full_like(scales, half), self.groups)
        zeros = fields(self.zeros, bits).permute(0, 2, 1).flatten(0, 1)[:rows]
        return Integers(bits, codes, scales, zeros.float(), self.groups)

    def narrow(self, dim: int, start: int, length: int) -> "CompressedMatrix":
        per_word, group = self.per_word, self.scaled.group
        if dim == 0:
            scales = self.scales.expand(self.shape[0], -1).narrow(0, start, length)
            zeros = self._zeros_of_rows(start, length)
            codes = self.codes.narrow(0, start, length)
            return CompressedMatrix(self.layout, codes, scales, zeros, self.groups, self.input_scale)
        check_cut(dim, start, length, group or per_word)
        codes = self.codes.narrow(1, start // per_word, length // per_word)
        if not group or self.groups is not None:
            groups = None if self.groups is None else self.groups.narrow(0, start, length)
            return CompressedMatrix(self.layout, codes, self.scales, self.zeros, groups, self.input_scale)
        first, count = start // group, length // group
        zeros = None if self.zeros is None else self.zeros.narrow(1, first, count)
        scales = self.scales.narrow(1, first, count)
        return CompressedMatrix(self.layout, codes, scales, zeros, None, self.input_scale)

    def _zeros_of_rows(self, start: int, length: int) -> Tensor | None:
        if self.zeros is None:
            return None
        if self.per_word == 1:
            return self.zeros.reshape(self.scales.shape).expand(self.shape[0], -1).narrow(0, start, length)
        check_cut(0, start, length, self.per_word)
        return self.zeros.narrow(0, start // self.per_word, length // self.per_word)

    def above(self, others: Sequence["CompressedMatrix"]) -> "CompressedMatrix":
        every = [matrix.narrow(0, 0, matrix.shape[0]) for matrix in (self, *others)]  # a scale for each row
        codes, scales = torch.cat([m.codes for m in every]), torch.cat([m.scales for m in every])
        zeros = [matrix.zeros for matrix in every if matrix.zeros is not None]
        return CompressedMatrix(
            self.layout, codes, scales, torch.cat(zeros) if zeros else None, self.groups, self.input_scale
        )
