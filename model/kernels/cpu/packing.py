"""Weights as the kernels read them: panels of sixteen rows (`panels.h`), repacked without loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.reference import Weight
from model.quantization.dequantize import split_groups
from model.quantization.formats import Format, Scaled
from model.quantization.integers import IntegerMatrix, Integers
from model.quantization.packed import SLAB_WEIGHTS, PackedTensor

PANEL_ROWS = 16
BLOCK_COLUMNS = 32


class Kind(IntEnum):
    """What a panel is made of, numbered as in `with_kind` of `panels.h`."""

    Q4_0 = 0
    Q4_1 = 1
    Q8_0 = 2
    Q5_1 = 3
    Q4_K = 4
    Q5_K = 5
    Q6_K = 6
    F32 = 7
    F16 = 8
    BF16 = 9


BITS_PER_WEIGHT = {
    **{Kind.Q4_0: 4.5, Kind.Q4_1: 5.0, Kind.Q8_0: 8.5, Kind.Q5_1: 9.0},
    **{Kind.Q4_K: 6.0, Kind.Q5_K: 10.0, Kind.Q6_K: 10.0},
    **{Kind.F32: 32.0, Kind.F16: 16.0, Kind.BF16: 16.0},
}
KINDS = {  # of the checkpoint's formats; what is not here is dequantised
    **{"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16},
    **{"Q4_0": Kind.Q4_0, "Q4_1": Kind.Q4_1, "Q5_0": Kind.Q8_0, "Q5_1": Kind.Q5_1, "Q8_0": Kind.Q8_0},
    **{"Q3_K": Kind.Q6_K, "Q4_K": Kind.Q4_K, "Q5_K": Kind.Q5_K, "Q6_K": Kind.Q6_K},
}


def panel_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """What `pack` makes of a matrix [..., rows, columns] of this format."""
    *leading, rows, columns = shape
    padded = -(-rows // PANEL_ROWS) * PANEL_ROWS
    return math.ceil(math.prod(leading) * padded * columns * BITS_PER_WEIGHT[_kind(dtype, columns)] / 8)


def _kind(name: str, columns: int) -> Kind:
    """What holds a format's weights exactly: numbers in fp32 where it is dequantised."""
    scaled = Scaled.parse(name)
    if scaled is None:
        return KINDS.get(name, Kind.F32)
    is_whole = scaled.letter == "I" and (scaled.group or columns) % BLOCK_COLUMNS == 0
    return {4: Kind.Q4_K, 8: Kind.Q5_K}[scaled.bits] if is_whole else Kind.F32


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """A matrix [rows, columns] in panels; the last one is filled up with zeros."""

    kind: Kind
    shape: tuple[int, int]
    data: Tensor

    @property
    def address(self) -> int:
        return self.data.data_ptr()

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


def pack(weight: Weight) -> Panels:
    """Repacks a matrix: quantised formats without loss, but for Q2_K, which is dequantised; dense ones as they are."""
    if isinstance(weight, Tensor):
        dense = weight if weight.dtype in _DENSE else weight.float()
        rows, columns = dense.shape
        return Panels(_DENSE[dense.dtype], (rows, columns), _interleave(dense[:, :, None]).contiguous())
    kind = _kind(weight.name, weight.shape[1])
    if kind is Kind.F32:
        return pack(weight.dequantize())
    rows, columns = weight.shape
    if isinstance(weight, IntegerMatrix):
        return Panels(kind, weight.shape, _panels(*_split_integers(weight.integers(), columns)))
    assert isinstance(weight, PackedTensor)
    slab = max(1, SLAB_WEIGHTS // columns // PANEL_ROWS) * PANEL_ROWS
    slabs = [_pack_rows(weight.format, weight.data[start : start + slab]) for start in range(0, rows, slab)]
    return Panels(kind, weight.shape, torch.cat(slabs))


def _pack_rows(form: Format, data: Tensor) -> Tensor:
    """Panels of some rows, uint8 [panels, blocks, bytes of a block]."""
    blocks = data.view(len(data), -1, form.block_bytes)
    return _panels(*(_SPLIT[form](blocks) if form in _SPLIT else _split_groups(form, blocks)))


def _panels(quants: Tensor, *scales: Tensor) -> Tensor:
    words = _interleave(quants.contiguous().view(torch.int32))
    parts = [words, *(_interleave(scale) for scale in scales)]
    return torch.cat([part.contiguous().view(torch.uint8).flatten(2) for part in parts], dim=2)


def _interleave(parts: Tensor) -> Tensor:
    """[rows, n, parts of each] -> [panels, n, parts of each, 16]."""
    missing = -len(parts) % PANEL_ROWS
    padded = F.pad(parts, (0, 0, 0, 0, 0, missing)) if missing else parts
    return padded.reshape(-1, PANEL_ROWS, *parts.shape[1:]).permute(0, 2, 3, 1)


# How a format's rows of blocks [rows, blocks, bytes] split into the quants of blocks of 32 columns, nibbles in GGML's
# order uint8 [rows, blocks, 16] or int8 [rows, blocks, 32], their scales and their minima [rows, blocks, groups].


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of every block."""
    return blocks[..., start : start + 2].contiguous().view(torch.float16)


def _five_bits(blocks: Tensor, start: int) -> Tensor:
    """The values 0..31 of the 4 bytes of fifth bits from `start` on and the 16 bytes of nibbles after them."""
    bits = torch.arange(8, dtype=torch.uint8)
    fifth = (blocks[..., start : start + 4, None] >> bits & 1).flatten(-2)
    nibbles = blocks[..., start + 4 : start + 20]
    return torch.cat([nibbles & 15, nibbles >> 4], dim=-1) | fifth << 4


_SPLIT: dict[Format, Callable[[Tensor], tuple[Tensor, ...]]] = {
    Format.Q4_0: lambda blocks: (blocks[..., 2:], _half(blocks, 0)),
    Format.Q4_1: lambda blocks: (blocks[..., 4:], _half(blocks, 0), _half(blocks, 2)),
    Format.Q5_0: lambda blocks: (_five_bits(blocks, 2) - 16, _half(blocks, 0)),  # wraps around to int8
    Format.Q5_1: lambda blocks: (_five_bits(blocks, 4), _half(blocks, 0), _half(blocks, 2)),
    Format.Q8_0: lambda blocks: (blocks[..., 2:], _half(blocks, 0)),
}
_DENSE = {torch.float32: Kind.F32, torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}


def _split_groups(form: Format, blocks: Tensor) -> tuple[Tensor, ...]:
    """K formats. The product of block and group scale has up to 19 bits, so it stays a float."""
    rows = len(blocks)
    groups = split_groups(form, blocks.flatten(0, 1))
    quants = groups.quants.to(torch.int8).view(rows, -1, BLOCK_COLUMNS)
    if form is Format.Q4_K:
        quants = _in_nibbles(quants)
    step = groups.step.reshape(rows, quants.shape[1], -1)
    return (quants, step) if groups.low is None else (quants, step, -groups.low.view_as(step))


def _split_integers(integers: Integers, columns: int) -> tuple[Tensor, ...]:
    """As Q4_K and Q5_K, whose scales and minima are fp32: (code - zero) * scale is made of such two exactly."""
    if integers.bits == 8:
        integers = integers.signed()
    quants = integers.codes.reshape(len(integers.codes), -1, BLOCK_COLUMNS)
    blocks = columns // BLOCK_COLUMNS // integers.scales.shape[1]  # under one scale
    minima = torch.zeros_like(integers.scales) if integers.zeros is None else -integers.zeros * integers.scales
    step, low = (part.repeat_interleave(blocks, dim=1)[..., None] for part in (integers.scales, minima))
    return (_in_nibbles(quants) if integers.bits == 4 else quants), step, low


def _in_nibbles(quants: Tensor) -> Tensor:
    return quants[..., :16] | quants[..., 16:] << 4
