"""What the packed bytes mean: one exact reference per format, bit-equal to `gguf.quants.dequantize`.

Shapes: n blocks, `[n, block_bytes]` uint8 in, `[n, block_size]` float32 out. The order of the float32 operations is
part of each format's meaning. Layouts: `ggml-common.h` and `ggml-quants.c` of ggml.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from model.quantization.formats import Format


def dequantize_blocks(form: Format, blocks: Tensor) -> Tensor:
    """Expands `[n, block_bytes]` uint8 to `[n, block_size]` float32, on the device of `blocks`."""
    expand = _EXPAND.get(form)
    return expand(blocks) if expand else split_groups(form, blocks).expand()


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of every block, as [n, 1] float32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _fields(packed: Tensor, bits: int) -> Tensor:
    """Splits bytes into bit fields, lowest first: [..., w] uint8 -> [..., 8 / bits, w] uint8."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return packed.unsqueeze(-2).bitwise_right_shift(shifts[:, None]).bitwise_and(2**bits - 1)


def _nibbles(packed: Tensor) -> Tensor:
    """[n, w] uint8 -> [n, 2 w] float32: all low nibbles, then all high ones."""
    return _fields(packed, 4).flatten(1).float()


def _five_bits(packed: Tensor, high: Tensor) -> Tensor:
    """Nibbles [n, 16] and their fifth bits [n, 4], bit j belonging to weight j -> [n, 32] float32."""
    fifth = _fields(high[:, :, None], 1).flatten(1)
    return (_fields(packed, 4).flatten(1) | fifth << 4).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_five_bits(blocks[:, 6:], blocks[:, 2:6]) - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _five_bits(blocks[:, 8:], blocks[:, 4:8]) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


# The K formats: a block of 256 weights is 8 or 16 groups, each with an integer scale under the block's float scale.


class Groups(NamedTuple):
    """Weights are step * quants - low. Shapes: quants [n, groups, size], float32 integers; the others [n, groups]."""

    quants: Tensor
    step: Tensor
    low: Tensor | None = None

    def expand(self) -> Tensor:
        weights = self.step[:, :, None] * self.quants
        return (weights if self.low is None else weights - self.low[:, :, None]).flatten(1)


def split_groups(form: Format, blocks: Tensor) -> Groups:
    """The integers and scales of a K format's blocks `[n, block_bytes]`, as its expansion multiplies them."""
    return _SPLIT[form](blocks)


def _q2_k(blocks: Tensor) -> Groups:
    scales = blocks[:, :16]
    step = _half(blocks, 80) * (scales & 15).float()
    low = _half(blocks, 82) * (scales >> 4).float()
    quants = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16).float()
    return Groups(quants, step, low)


def _q3_k(blocks: Tensor) -> Groups:
    low = _fields(blocks[:, 96:104], 4).flatten(1)
    high = _fields(blocks[:, 104:108], 2).flatten(1)
    step = _half(blocks, 108) * ((low | high << 4).float() - 32)
    two_bits = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    third = _fields(blocks[:, :32], 1).reshape(-1, 16, 16)
    quants = (two_bits | third << 2).float() - 4  # a clear third bit is what subtracts 4
    return Groups(quants, step)


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes hold 8 scales and 8 minima of 6 bits: 4 low of each, then nibbles whose top bits sit above the low."""
    scales, minima, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([scales & 63, rest & 15 | scales >> 6 << 4], dim=1)
    minima = torch.cat([minima & 63, rest >> 4 | minima >> 6 << 4], dim=1)
    return scales.float(), minima.float()


def _q4_k(blocks: Tensor) -> Groups:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    step, low = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    quants = _fields(blocks[:, 16:].reshape(-1, 4, 32), 4).flatten(1, 2).float()
    return Groups(quants, step, low)


def _q5_k(blocks: Tensor) -> Groups:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    step, low = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    nibbles = _fields(blocks[:, 48:].reshape(-1, 4, 32), 4).flatten(1, 2)
    quants = (nibbles | _fields(blocks[:, 16:48], 1) << 4).float()
    return Groups(quants, step, low)


def _q6_k(blocks: Tensor) -> Groups:
    step = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    nibbles = _fields(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    high = _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    quants = ((nibbles | high << 4).float() - 32).reshape(-1, 16, 16)
    return Groups(quants, step)


_EXPAND: dict[Format, Callable[[Tensor], Tensor]] = {
    Format.Q4_0: _q4_0,
    Format.Q4_1: _q4_1,
    Format.Q5_0: _q5_0,
    Format.Q5_1: _q5_1,
    Format.Q8_0: _q8_0,
}
_SPLIT: dict[Format, Callable[[Tensor], Groups]] = {
    Format.Q2_K: _q2_k,
    Format.Q3_K: _q3_k,
    Format.Q4_K: _q4_k,
    Format.Q5_K: _q5_k,
    Format.Q6_K: _q6_k,
}
