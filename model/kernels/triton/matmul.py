"""Products of activations with a weight matrix on a GPU: x W^T + b, with W dense or packed in groups of columns.

A row's bits do not depend on the batch, because nothing that enters its sum does: TILE_COLUMNS columns at a time, in
order, by instructions for TILE_ROWS rows, whether one of them is wanted or all; no sum is split. How many outputs a
program computes side by side is no part of a sum, so it may follow from the number of rows; and so may unpacking the
whole matrix first, since a weight is then rounded as it is within the product. The compiled forms differ in nothing
but how many outputs their instruction has: that it sums for 32 outputs as for more, only a card can confirm.
"""

import triton
import triton.language as tl

TILE_ROWS, TILE_COLUMNS = 64, 64
FEW, MANY = {"TILE_OUT": 32, "num_warps": 4}, {"TILE_OUT": 256, "num_warps": 8}  # rows: so many outputs of a program


@triton.jit
def weights_at(
    w_ptr, scales_ptr, minima_ptr, unit, is_unit, start, columns,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMA: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The weights of rows `unit` and of COLUMNS columns from `start` on; fp32 where they are packed in BITS."""
    column = start + tl.arange(0, COLUMNS)
    inside = is_unit[:, None] & (column < columns)
    if BITS == 4:  # a byte holds an even column in its low half and the next one in its high half
        byte = start // 2 + tl.arange(0, COLUMNS // 2)
        pairs = tl.load(w_ptr + unit[:, None] * (columns // 2) + byte, is_unit[:, None] & (byte < columns // 2), 0)
        weights = tl.reshape(tl.join(pairs & 15, pairs >> 4), (unit.shape[0], COLUMNS))
    else:
        weights = tl.load(w_ptr + unit[:, None] * columns + column, inside, 0)
    if BITS > 0:
        group = unit[:, None] * (columns // GROUP) + column // GROUP
        scales = tl.load(scales_ptr + group, inside, 0.0).to(tl.float32)
        weights = weights.to(tl.float32) * scales  # exact: 8 bits times 11
        if HAS_MINIMA:
            weights += tl.load(minima_ptr + group, inside, 0.0).to(tl.float32)
    return weights


@triton.jit
def product(
    x_ptr, w_ptr, scales_ptr, minima_ptr, bias_ptr, y_ptr, rows, columns, out,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMA: tl.constexpr, HAS_BIAS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_OUT: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """BITS is 0 where W is dense; else GROUP columns share a scale."""
    row = (tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)).to(tl.int64)
    unit = (tl.program_id(0) * TILE_OUT + tl.arange(0, TILE_OUT)).to(tl.int64)
    is_row, is_unit = row < rows, unit < out
    total = tl.zeros((TILE_ROWS, TILE_OUT), tl.float32)
    for start in range(0, columns, TILE_COLUMNS):
        column = start + tl.arange(0, TILE_COLUMNS)
        x = tl.load(x_ptr + row[:, None] * columns + column, is_row[:, None] & (column < columns), 0.0)
        w = weights_at(
            w_ptr, scales_ptr, minima_ptr, unit, is_unit, start, columns, BITS, GROUP, HAS_MINIMA, TILE_COLUMNS
        )  # fmt: skip
        total = tl.dot(x, tl.trans(w.to(x.dtype)), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias_ptr + unit, is_unit, 0.0).to(tl.float32)
    tl.store(y_ptr + row[:, None] * out + unit, total.to(y_ptr.dtype.element_ty), is_row[:, None] & is_unit)


@triton.jit
def embed(
    ids_ptr, w_ptr, scales_ptr, minima_ptr, y_ptr, columns,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMA: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program for so many columns of one row of a packed matrix."""
    row = tl.program_id(0).to(tl.int64)
    unit = tl.load(ids_ptr + row) + tl.zeros((1,), tl.int64)
    start = tl.program_id(1) * COLUMNS
    column = start + tl.arange(0, COLUMNS)
    w = weights_at(w_ptr, scales_ptr, minima_ptr, unit, unit >= 0, start, columns, BITS, GROUP, HAS_MINIMA, COLUMNS)
    y = tl.reshape(w, (COLUMNS,)).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * columns + column, y, column < columns)
