"""Small integers under scales: what the integer formats of safetensors have in common."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.quantization.formats import WORD_BITS, Scaled
from model.quantization.matrix import PackedMatrix


@dataclass(frozen=True, slots=True, eq=False)
class Integers:
    """Weights are (code - zero) * scale: exact in fp32 where scales have 16 bits.

    Shapes: codes [rows, columns], scales fp32 and zeros fp32 [rows, groups]. `bits` unsigned ones are uint8, signed
    ones int8. A group is of columns side by side, or `groups` [columns] names each column's.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    groups: Tensor | None = None

    def signed(self) -> "Integers":
        """The same of 8 bits as int8, so that kernels need to know one kind: code and zero both 128 less."""
        if self.codes.dtype == torch.int8:
            return self
        assert self.zeros is not None, "unsigned codes have a zero in their midst"
        return replace(self, codes=(self.codes ^ 128).view(torch.int8), zeros=self.zeros - 128)

    def expand(self) -> Tensor:
        weights = self.codes.contiguous().float()  # what follows is done in place: a large matrix is a gigabyte
        if self.groups is not None:
            index = self.groups.long()
            zeros = 0.0 if self.zeros is None else self.zeros[:, index]
            return weights.sub_(zeros).mul_(self.scales[:, index])
        grouped = weights.view(len(weights), self.scales.shape[1], -1)
        grouped.sub_(0.0 if self.zeros is None else self.zeros[..., None]).mul_(self.scales[..., None])
        return weights


class IntegerMatrix(PackedMatrix):
    """A matrix that is `Integers`, in whatever order the file has them."""

    __slots__ = ()

    @property
    @abstractmethod
    def scaled(self) -> Scaled: ...

    @abstractmethod
    def integers(self) -> Integers:
        """Unpacked, in rows."""

    @property
    def name(self) -> str:
        return str(self.scaled)

    def dequantize(self) -> Tensor:
        return self.integers().expand()


def fields(words: Tensor, bits: int) -> Tensor:
    """Splits int32 into unsigned bit fields, lowest first: [...] -> uint8 [..., 32 / bits]."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words.device)
    return words.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and(2**bits - 1).to(torch.uint8)


def check_cut(dim: int, start: int, length: int, step: int) -> None:
    """Raises ValueError where a view would begin or end within `step` rows or columns that are packed together."""
    if start % step or length % step:
        what = "columns" if dim else "rows"
        raise ValueError(f"{what} {start} to {start + length} part {what} that are packed together, {step} each")
