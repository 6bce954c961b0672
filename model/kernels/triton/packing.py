"""Packed weights as the GPU's products read them: codes, scales and minima apart, each in rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.quantization import Format, PackedTensor

BITS = {Format.Q4_0: 4, Format.Q4_1: 4, Format.Q8_0: 8}  # what is not here is dequantised
BLOCK_COLUMNS = 32
DENSE = {"BITS": 0, "GROUP": 1, "HAS_MINIMA": False}  # see `Packed.packing`


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A matrix [rows, columns] whose weights are code * scale + minimum, in blocks of 32 columns."""

    shape: tuple[int, int]
    bits: int
    codes: Tensor  # 4 bits: uint8 [rows, columns / 2], even columns in the low halves; 8 bits: int8 [rows, columns]
    scales: Tensor  # fp16 [rows, columns / 32]
    minima: Tensor | None  # the same, or all zero

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.codes, self.scales, self.minima

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts if part is not None)

    @property
    def packing(self) -> dict[str, int]:
        """What a kernel that reads the parts is compiled for. GROUP columns share a scale."""
        group = self.shape[1] // self.scales.shape[1]
        return {"BITS": self.bits, "GROUP": group, "HAS_MINIMA": self.minima is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Matrices of one shape, one above the other."""

    count: int
    matrix: Packed | Tensor


def concatenated(matrices: Sequence[Packed]) -> Packed:
    """Their rows, first to last; all have the same bits, and minima or none."""
    first = matrices[0]
    shape = sum(matrix.shape[0] for matrix in matrices), first.shape[1]
    minima = [matrix.minima for matrix in matrices if matrix.minima is not None]
    codes, scales = (torch.cat([getattr(matrix, name) for matrix in matrices]) for name in ("codes", "scales"))
    return Packed(shape, first.bits, codes, scales, torch.cat(minima) if minima else None)


def pack(weight: PackedTensor, device: torch.device) -> Packed:
    """Without loss: what is negated or multiplied by 8 keeps its digits."""
    rows, columns = weight.shape
    blocks = weight.data.view(rows, columns // BLOCK_COLUMNS, weight.format.block_bytes).to(device)
    scales = _half(blocks, 0)
    if weight.format is Format.Q8_0:
        return Packed(weight.shape, 8, blocks[..., 2:].reshape(rows, columns).view(torch.int8), scales, None)
    minima = _half(blocks, 2) if weight.format is Format.Q4_1 else scales * -8
    return Packed(weight.shape, 4, _in_pairs(blocks[..., -16:]), scales, minima)


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of every block."""
    return blocks[..., start : start + 2].contiguous().view(torch.float16).squeeze(-1)


def _in_pairs(nibbles: Tensor) -> Tensor:
    """From GGML's order, where byte j holds columns j and j + 16: [rows, blocks, 16] -> [rows, columns / 2]."""
    columns = torch.cat([nibbles & 15, nibbles >> 4], dim=-1)
    return (columns[..., ::2] | columns[..., 1::2] << 4).flatten(1)
