"""Products of activations with a weight matrix on a GPU: x W^T + b, with W dense or packed in groups of columns.

A row's bits do not depend on the batch, because nothing that enters its sum does: TILE_COLUMNS columns at a time, in
order, by instructions for TILE_ROWS rows, whether one of them is wanted or all; no sum is split. How many outputs a
program computes side by side is no part of a sum, so it may follow from the number of rows; and so may unpacking the
whole matrix first, since a weight is then rounded as it is within the product. The compiled forms differ in nothing
but how many outputs their instruction has: that it sums for 32 outputs as for more, only a card can confirm.
"""

import triton
import triton.language as tl

from model.kernels.triton.float8 import from_float8

TILE_ROWS, TILE_COLUMNS = 64, 64
FEW, MANY = {"TILE_OUT": 32, "num_warps": 4}, {"TILE_OUT": 128, "num_warps": 8}  # rows: so many outputs of a program


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
        if BITS == 8 and w_ptr.dtype.element_ty == tl.uint8:  # integers have signs
            weights = from_float8(weights)
    if BITS > 0:
        group = unit[:, None] * (columns // GROUP) + column // GROUP
        scales = tl.load(scales_ptr + group, inside, 0.0).to(tl.float32)
        weights = weights.to(tl.float32) * scales  # exact: 8 bits times 11
        if HAS_MINIMA:
            weights += tl.load(minima_ptr + group, inside, 0.0).to(tl.float32)
    return weights


@triton.jit
def sums(
    x_ptr, w_ptr, scales_ptr, minima_ptr, row, is_row, unit, is_unit, columns,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMA: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows of x times rows `unit` of W, fp32. BITS is 0 where W is dense; else GROUP columns share a scale."""
    total = tl.zeros((row.shape[0], unit.shape[0]), tl.float32)
    for start in range(0, columns, TILE_COLUMNS):
        column = start + tl.arange(0, TILE_COLUMNS)
        x = tl.load(x_ptr + row[:, None] * columns + column, is_row[:, None] & (column < columns), 0.0)
        w = weights_at(
            w_ptr, scales_ptr, minima_ptr, unit, is_unit, start, columns, BITS, GROUP, HAS_MINIMA, TILE_COLUMNS
        )  # fmt: skip
        total = tl.dot(x, tl.trans(w.to(x.dtype)), total, input_precision="ieee")
    return total


@triton.jit
def product(
    x_ptr, w_ptr, scales_ptr, minima_ptr, bias_ptr, y_ptr, rows, columns, out,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMA: tl.constexpr, HAS_BIAS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_OUT: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)).to(tl.int64)
    unit = (tl.program_id(0) * TILE_OUT + tl.arange(0, TILE_OUT)).to(tl.int64)
    is_row, is_unit = row < rows, unit < out
    total = sums(
        x_ptr, w_ptr, scales_ptr, minima_ptr, row, is_row, unit, is_unit, columns, BITS, GROUP, HAS_MINIMA, TILE_COLUMNS
    )  # fmt: skip
    if HAS_BIAS:
        total += tl.load(bias_ptr + unit, is_unit, 0.0).to(tl.float32)
    tl.store(y_ptr + row[:, None] * out + unit, total.to(y_ptr.dtype.element_ty), is_row[:, None] & is_unit)


@triton.jit
def product_of_each(
    x_ptr, w_ptr, scales_ptr, minima_ptr, order_ptr, counts_ptr, y_ptr, columns, out, matrices,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MINIMA: tl.constexpr, MATRICES: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_OUT: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """W is so many matrices of `out` rows each. Rows of x in the order given use them one after the other.

    Each matrix's rows begin a tile of their own: which one a program has is counted here, so that no host has to know.
    MATRICES is a power of two above their number.
    """
    matrix = tl.arange(0, MATRICES)
    counts = tl.load(counts_ptr + matrix, matrix < matrices, 0)
    tiles = tl.cdiv(counts, TILE_ROWS)
    last_tiles = tl.cumsum(tiles)
    own = tl.sum((last_tiles <= tl.program_id(1)).to(tl.int32))
    if own < matrices:
        is_own, is_before = matrix == own, matrix < own
        first_row, first_tile = tl.sum(tl.where(is_before, counts, 0)), tl.sum(tl.where(is_before, tiles, 0))
        rank = (tl.program_id(1) - first_tile) * TILE_ROWS + tl.arange(0, TILE_ROWS)
        is_row = rank < tl.sum(tl.where(is_own, counts, 0))
        row = tl.load(order_ptr + first_row + rank, is_row, 0)
        unit = (tl.program_id(0) * TILE_OUT + tl.arange(0, TILE_OUT)).to(tl.int64)
        is_unit = unit < out
        total = sums(
            x_ptr, w_ptr, scales_ptr, minima_ptr, row, is_row, own.to(tl.int64) * out + unit, is_unit, columns,
            BITS, GROUP, HAS_MINIMA, TILE_COLUMNS,
        )  # fmt: skip
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
