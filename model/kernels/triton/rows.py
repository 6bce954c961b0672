"""What a GPU computes row by row: norms, rotation, activations, the store into the cache.

One program takes one row, whole, so that its bits depend on nothing beside it. Everything is computed in fp32 and
rounded once, where it is stored. Offsets are 64-bit: a row times its width may pass 2^31.
"""

import triton
import triton.language as tl


@triton.jit
def rms_norm(x_ptr, weight_ptr, y_ptr, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + row + columns, inside, 0.0).to(tl.float32)
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
def rotate(x_ptr, cos_ptr, sin_ptr, y_ptr, x_stride, heads, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """One program for one head of a row; `x_stride` numbers lie between two rows of x, none between those of y."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pair = tl.arange(0, BLOCK)
    inside = pair < HALF
    cos = tl.load(cos_ptr + row * HALF + pair, inside, 0.0)
    sin = tl.load(sin_ptr + row * HALF + pair, inside, 0.0)
    x_ptr += row * x_stride + head * 2 * HALF
    first = tl.load(x_ptr + pair, inside, 0.0).to(tl.float32)
    second = tl.load(x_ptr + HALF + pair, inside, 0.0).to(tl.float32)
    y_ptr += (row * heads + head) * 2 * HALF
    tl.store(y_ptr + pair, (first * cos - second * sin).to(y_ptr.dtype.element_ty), inside)
    tl.store(y_ptr + HALF + pair, (second * cos + first * sin).to(y_ptr.dtype.element_ty), inside)


@triton.jit
def store(
    k_ptr, v_ptr, keys_ptr, values_ptr, slots_ptr, k_stride, v_stride, groups,
    HEAD_DIM: tl.constexpr, POSITIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for one group of a row; a block of the cache has so many positions."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots_ptr + row)
    corner = (slot // POSITIONS * groups + group) * HEAD_DIM * POSITIONS
    offset = slot % POSITIONS
    place = tl.arange(0, BLOCK)
    inside = place < HEAD_DIM
    k = tl.load(k_ptr + row * k_stride + group * HEAD_DIM + place, inside, 0.0)
    v = tl.load(v_ptr + row * v_stride + group * HEAD_DIM + place, inside, 0.0)
    tl.store(keys_ptr + corner + place * POSITIONS + offset, k.to(keys_ptr.dtype.element_ty), inside)
    tl.store(values_ptr + corner + offset * HEAD_DIM + place, v.to(values_ptr.dtype.element_ty), inside)


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
