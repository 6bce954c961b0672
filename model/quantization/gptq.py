"""GPTQ (Frantar et al. 2022): integers along the columns of words, a scale and a zero for each group of inputs."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.quantization.formats import WORD_BITS, Scaled
from model.quantization.integers import IntegerMatrix, Integers, check_cut, fields


@dataclass(frozen=True, slots=True)
class GptqLayout:
    """What `quantization_config` says of all matrices."""

    bits: int
    group: int | None  # input columns; None: all
    zero_offset: int  # what is missing at stored zeros: 1 in AutoGPTQ's own format, 0 in its second
    is_ordered_by_activation: bool  # groups are of columns anywhere, as g_idx says

    @property
    def per_word(self) -> int:
        return WORD_BITS // self.bits


@dataclass(frozen=True, slots=True, eq=False)
class GptqMatrix(IntegerMatrix):
    """Words int32 [columns / n, rows] hold n columns each, those of zeros [groups, rows / n] n rows.

    Scales are [groups, rows]. Source: AutoGPTQ 0.7.1, whose weights on a CPU have the same bits: `qlinear_cuda_old.py`,
    and `qlinear_cuda.py` where g_idx orders columns. A zero of 0 only the former knows.
    """

    layout: GptqLayout
    words: Tensor
    zeros: Tensor
    scales: Tensor
    groups: Tensor | None  # of each column [columns], where they are ordered by activation

    @classmethod
    def build(cls, layout: GptqLayout, parts: Mapping[str, Tensor]) -> "GptqMatrix":
        """From the tensors by their names in the file. Raises ValueError where they do not fit together."""
        groups = parts.get("g_idx")
        own_groups = groups if layout.is_ordered_by_activation else None
        matrix = cls(layout, parts["qweight"], parts["qzeros"], parts["scales"], own_groups)
        matrix._check(groups)
        return matrix

    def _check(self, groups: Tensor | None) -> None:
        if (self.words.dtype, self.zeros.dtype) != (torch.int32, torch.int32):
            raise ValueError(f"qweight and qzeros are {self.words.dtype} and {self.zeros.dtype}, not int32")
        rows, columns = self.shape
        group = self.layout.group or columns
        if columns % group or rows % self.layout.per_word:
            raise ValueError(f"group_size {group}: a matrix of {rows} x {columns} is not made of whole groups")
        expected = columns // group, rows
        if tuple(self.scales.shape) != expected or _unpacked_shape(self.zeros, self.layout) != expected:
            found = f"scales {tuple(self.scales.shape)} and qzeros {tuple(self.zeros.shape)}"
            raise ValueError(f"{found} do not fit {rows} x {columns} weights in groups of {group}")
        if self.layout.is_ordered_by_activation and groups is None:
            raise ValueError("desc_act: there is no g_idx")
        if groups is None or groups.is_meta:
            return
        if groups.shape != (columns,) or int(groups.min()) < 0 or int(groups.max()) >= columns // group:
            raise ValueError(f"g_idx does not name one of {columns // group} groups for each of {columns} columns")
        if self.groups is None and not torch.equal(groups.long(), torch.arange(columns) // group):
            raise ValueError("desc_act is false, but g_idx orders the columns")

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape[1], self.words.shape[0] * self.layout.per_word

    @property
    def scaled(self) -> Scaled:
        group = self.layout.per_word if self.layout.is_ordered_by_activation else self.layout.group
        return Scaled("I", self.layout.bits, group or 0)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        parts = self.words, self.zeros, self.scales
        return parts if self.groups is None else (*parts, self.groups)

    @property
    def kind(self) -> Hashable:
        return self.layout, None if self.groups is None else tuple(self.groups.tolist())

    def integers(self) -> Integers:
        bits, (rows, columns) = self.layout.bits, self.shape
        codes = fields(self.words, bits).permute(1, 0, 2).reshape(rows, columns)
        stored = fields(self.zeros, bits).flatten(1)
        zeros = stored.int() + self.layout.zero_offset & 2**bits - 1  # a zero of 0 is stored as the largest
        return Integers(bits, codes, self.scales.T.float(), zeros.T.float(), self.groups)

    def narrow(self, dim: int, start: int, length: int) -> "GptqMatrix":
        per_word = self.layout.per_word
        if dim == 0:
            check_cut(dim, start, length, per_word)
            words, scales = (part.narrow(1, start, length) for part in (self.words, self.scales))
            zeros = self.zeros.narrow(1, start // per_word, length // per_word)
            return GptqMatrix(self.layout, words, zeros, scales, self.groups)
        group = self.scaled.group
        check_cut(dim, start, length, group or per_word)
        words = self.words.narrow(0, start // per_word, length // per_word)
        if not group or self.groups is not None:
            groups = None if self.groups is None else self.groups.narrow(0, start, length)
            return GptqMatrix(self.layout, words, self.zeros, self.scales, groups)
        zeros, scales = (part.narrow(0, start // group, length // group) for part in (self.zeros, self.scales))
        return GptqMatrix(self.layout, words, zeros, scales, None)

    def above(self, others: Sequence["GptqMatrix"]) -> "GptqMatrix":
        every = (self, *others)
        words, zeros, scales = (torch.cat(parts, dim=1) for parts in zip(*(m.parts[:3] for m in every), strict=True))
        return GptqMatrix(self.layout, words, zeros, scales, self.groups)


def _unpacked_shape(zeros: Tensor, layout: GptqLayout) -> tuple[int, int]:
    return zeros.shape[0], zeros.shape[1] * layout.per_word
