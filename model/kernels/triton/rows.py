"""What a GPU computes row by row: norms, rotation, activations, the store into the cache.

One program takes one row, whole, so that its bits depend on nothing beside it. Everything is computed in fp32 and
rounded where it is stored. Offsets are 64-bit: a row times its width may pass 2^31.
"""

import triton
import triton.language as tl

from model.kernels.triton.float8 import to_float8


@triton.jit
def rms_norm(x_ptr, other_ptr, weight_ptr, sum_ptr, y_ptr, width, eps, IS_SUM: tl.constexpr, BLOCK: tl.constexpr):
    """Of x, or of x + other, rounded as it is stored."""
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + row + columns, inside, 0.0).to(tl.float32)
    if IS_SUM:
        x += tl.load(other_ptr + row + columns, inside, 0.0).to(tl.float32)
        total = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row + columns, total, inside)
        x = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x) / width + eps)
    y = x * scale * tl.load(weight_ptr + columns, inside, 0.0)
    tl.store(y_ptr + row + columns, y.to(y_ptr.dtype.element_ty), inside)


@triton.jit
def layer_norm(x_ptr, weight_ptr, bias_ptr, y_ptr, width, eps, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + row + columns, inside, 0.0).to(tl.float32)
    centered = tl.where(inside, x - tl.sum(x) / width, 0.0)
    scale = tl.rsqrt(tl.sum(centered * centered) / width + eps)
    y = centered * scale * tl.load(weight_ptr + columns, inside, 0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + columns, inside, 0.0)
    tl.store(y_ptr + row + columns, y.to(y_ptr.dtype.element_ty), inside)


@triton.jit
def rotated(x_ptr, cos_ptr, sin_ptr, row, place, HEAD_DIM: tl.constexpr, IS_ROTATED: tl.constexpr):
    """The numbers of a head, dimension i turned with i + HEAD_DIM / 2, rounded as x is."""
    inside = place < HEAD_DIM
    x = tl.load(x_ptr + place, inside, 0.0)
    if IS_ROTATED:
        half: tl.constexpr = HEAD_DIM // 2
        is_first = place < half
        other = tl.load(x_ptr + tl.where(is_first, place + half, place - half), inside, 0.0).to(tl.float32)
        turn = row * half + place % half
        cos, sin = tl.load(cos_ptr + turn, inside, 0.0), tl.load(sin_ptr + turn, inside, 0.0)
        x = (x.to(tl.float32) * cos + tl.where(is_first, -other, other) * sin).to(x.dtype)
    return x


@triton.jit
def quantized(x, limit, IS_FLOAT8: tl.constexpr):
    """x in integers up to `limit`, still fp32, or in bytes of floats; and what one of them stands for."""
    x = x.to(tl.float32)
    largest = tl.max(tl.abs(x))
    smallest = 1e-30  # as SMALLEST_MAGNITUDE of the reference
    inverse = tl.where(largest > smallest, limit * tl.div_rn(1.0, tl.maximum(largest, smallest)), 0.0)
    if IS_FLOAT8:
        numbers = to_float8(x * inverse)
    else:
        rounding = 12582912.0  # 1.5 * 2^23: a small number added to it loses what is behind its point, half to even
        numbers = (x * inverse + rounding) - rounding
    return numbers, tl.div_rn(largest, limit)


@triton.jit
def rotate_and_store(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, rotated_ptr, keys_ptr, values_ptr, scales_ptr, slots_ptr,
    q_stride, k_stride, v_stride, key_stride, place_stride, scales_stride, heads, groups, limit,
    HEAD_DIM: tl.constexpr, POSITIONS: tl.constexpr, BLOCK: tl.constexpr,
    IS_ROTATED: tl.constexpr, HAS_SCALES: tl.constexpr,
):  # fmt: skip
    """One program for one of the query heads of a row, or for one of its groups: those come after the heads.

    A block of the cache has POSITIONS, whose keys lie `key_stride` numbers apart and a key's own `place_stride`.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.arange(0, BLOCK)
    inside = place < HEAD_DIM
    if head < heads:
        q = rotated(q_ptr + row * q_stride + head * HEAD_DIM, cos_ptr, sin_ptr, row, place, HEAD_DIM, IS_ROTATED)
        tl.store(rotated_ptr + (row * heads + head) * HEAD_DIM + place, q, inside)
    else:
        group = head - heads
        k = rotated(k_ptr + row * k_stride + group * HEAD_DIM, cos_ptr, sin_ptr, row, place, HEAD_DIM, IS_ROTATED)
        v = tl.load(v_ptr + row * v_stride + group * HEAD_DIM + place, inside, 0.0)
        slot = tl.load(slots_ptr + row)
        corner, offset = (slot // POSITIONS * groups + group) * POSITIONS, slot % POSITIONS
        if HAS_SCALES:
            k, k_scale = quantized(k, limit, keys_ptr.dtype.element_ty == tl.uint8)
            v, v_scale = quantized(v, limit, values_ptr.dtype.element_ty == tl.uint8)
            tl.store(scales_ptr + corner + offset, k_scale)
            tl.store(scales_ptr + scales_stride + corner + offset, v_scale)
        k_at = keys_ptr + corner * HEAD_DIM + offset * key_stride + place * place_stride
        tl.store(k_at, k.to(keys_ptr.dtype.element_ty), inside)
        tl.store(values_ptr + (corner + offset) * HEAD_DIM + place, v.to(values_ptr.dtype.element_ty), inside)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """fp32 to fp32; tanh by way of the logistic function, which Triton has for every target."""
    if ACTIVATION == "relu":
        y = tl.maximum(x, 0.0)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        tl.static_assert(ACTIVATION == "silu")
        y = x * tl.sigmoid(x)
    return y


@triton.jit
def activate(x_ptr, y_ptr, count, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """One program for so many numbers: each is computed alone."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, place < count, 0.0).to(tl.float32)
    tl.store(y_ptr + place, activated(x, ACTIVATION).to(y_ptr.dtype.element_ty), place < count)


@triton.jit
def gate(x_ptr, y_ptr, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """One program for so many columns of a row of [gate, up], each `width` wide."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gated = tl.load(x_ptr + row * 2 * width + columns, inside, 0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * width + width + columns, inside, 0.0).to(tl.float32)
    y = activated(gated, ACTIVATION) * up
    tl.store(y_ptr + row * width + columns, y.to(y_ptr.dtype.element_ty), inside)
