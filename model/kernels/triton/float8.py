"""Floats of 8 bits (e4m3fn) from and to their bytes, with integer arithmetic: so every card has them, and exactly."""

import triton
import triton.language as tl


@triton.jit
def from_float8(code):
    """uint8 -> fp32. The same bits make an fp16 whose exponent is 8 too small."""
    wide = code.to(tl.uint16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    number = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), number)


@triton.jit
def to_float8(number):
    """fp32 of at most 448 -> uint8, half to even. Below 2^-6 a step is 2^-9, else an eighth of the power of two."""
    bits = number.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    rounding = 12582912.0  # 1.5 * 2^23, as in `quantized`
    small = ((tl.abs(number) * 512.0 + rounding) - rounding).to(tl.int32)
    large = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    code = tl.where(magnitude < (121 << 23), small, large)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)  # no number stays none
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)
