"""Packed weights as the GPU's products read them: codes, scales and minima apart, each in rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.quantization import Format, PackedMatrix, PackedTensor
from model.quantization.float8 import Float8Matrix
from model.quantization.formats import Scaled
from model.quantization.integers import IntegerMatrix, Integers

BYTES = {Format.Q4_0: 20, Format.Q4_1: 20, Format.Q8_0: 34}  # of BLOCK_COLUMNS packed weights
BLOCK_COLUMNS = 32
DENSE = {"BITS": 0, "GROUP": 1, "HAS_MINIMA": False}  # see `Packed.packing`


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A matrix [rows, columns] whose weights are code * scale + minimum, in groups of columns."""

    shape: tuple[int, int]
    bits: int
    codes: Tensor  # 4 bits: uint8 [rows, columns / 2], even columns in the low halves; 8: int8, or uint8 of floats
    scales: Tensor  # [rows, groups]
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

    @property
    def form(self) -> tuple[object, ...]:
        """What matrices have in common that can be stacked."""
        return self.codes.dtype, *self.packing.values()


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Matrices of one shape, one above the other."""

    count: int
    matrix: Packed | Tensor


def concatenated(matrices: Sequence[Packed]) -> Packed:
    """Their rows, first to last; all have one form."""
    first = matrices[0]
    shape = sum(matrix.shape[0] for matrix in matrices), first.shape[1]
    minima = [matrix.minima for matrix in matrices if matrix.minima is not None]
    codes, scales = (torch.cat([getattr(matrix, name) for matrix in matrices]) for name in ("codes", "scales"))
    return Packed(shape, first.bits, codes, scales, torch.cat(minima) if minima else None)


def packed_bytes(shape: tuple[int, ...], name: str) -> int | None:
    """What `pack` makes of a matrix [..., columns], None where it makes nothing of the format: that is dequantised."""
    count, scaled = math.prod(shape), Scaled.parse(name)
    if scaled is None:
        size = BYTES.get(Format[name]) if name in Format.__members__ else None
        return None if size is None else count // BLOCK_COLUMNS * size
    group = scaled.group or shape[-1]
    if group % BLOCK_COLUMNS or shape[-1] % group:
        return None
    per_group = 1 if scaled.letter == "F" else 2  # a scale, and of integers a minimum
    return count * scaled.bits // 8 + count // group * per_group * torch.float32.itemsize


def pack(weight: PackedMatrix, device: torch.device) -> Packed | None:
    """Without loss, where there is a way."""
    if packed_bytes(weight.shape, weight.name) is None:
        return None
    if isinstance(weight, IntegerMatrix):
        return _pack_integers(weight.shape, weight.integers(), device)
    if isinstance(weight, Float8Matrix):
        codes, scales = weight.numbers.view(torch.uint8), weight.scales_of_rows().contiguous()
        return Packed(weight.shape, 8, codes.to(device).contiguous(), scales.to(device), None)
    assert isinstance(weight, PackedTensor)
    return _pack_blocks(weight, device)


def _pack_integers(shape: tuple[int, int], integers: Integers, device: torch.device) -> Packed:
    """(code - zero) * scale is a scale and a minimum in fp32 exactly, where scales have 16 bits."""
    if integers.bits == 8:
        integers = integers.signed()
    codes, zeros = integers.codes.to(device).contiguous(), integers.zeros
    scales = integers.scales.to(device).contiguous()
    minima = None if zeros is None else (-zeros.to(device) * scales).contiguous()
    return Packed(shape, integers.bits, _pairs(codes) if integers.bits == 4 else codes, scales, minima)


def _pack_blocks(weight: PackedTensor, device: torch.device) -> Packed:
    """What is negated or multiplied by 8 keeps its digits."""
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
    return _pairs(torch.cat([nibbles & 15, nibbles >> 4], dim=-1)).flatten(1)


def _pairs(codes: Tensor) -> Tensor:
    return codes[..., ::2] | codes[..., 1::2] << 4
