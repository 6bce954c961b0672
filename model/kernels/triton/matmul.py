"""Products of activations with a weight matrix on a GPU: x W^T + b, with W dense or in packed blocks of 32 columns.

One tile shape serves every number of rows: a tile's rows are multiplied by the same instructions in the same order of
columns, whether one of them is wanted or all, so that a row's bits do not depend on the batch. No sum is split.
"""

import triton
import triton.language as tl


@triton.jit
def dense(
    x_ptr, w_ptr, bias_ptr, y_ptr, rows, columns, out, HAS_BIAS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_OUT: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)).to(tl.int64)
    unit = (tl.program_id(0) * TILE_OUT + tl.arange(0, TILE_OUT)).to(tl.int64)
    is_row, is_unit = row < rows, unit < out
    total = tl.zeros((TILE_ROWS, TILE_OUT), tl.float32)
    for start in range(0, columns, TILE_COLUMNS):
        column = start + tl.arange(0, TILE_COLUMNS)
        is_column = column < columns
        x = tl.load(x_ptr + row[:, None] * columns + column, is_row[:, None] & is_column, 0.0)
        w = tl.load(w_ptr + unit[:, None] * columns + column, is_unit[:, None] & is_column, 0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias_ptr + unit, is_unit, 0.0).to(tl.float32)
    tl.store(y_ptr + row[:, None] * out + unit, total.to(y_ptr.dtype.element_ty), is_row[:, None] & is_unit)


@triton.jit
def unpack(
    codes_ptr, scales_ptr, minima_ptr, unit, is_unit, start, columns,
    BITS: tl.constexpr, HAS_MINIMA: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The weights of rows `unit` and of COLUMNS columns from `start` on, fp32 [units, COLUMNS]."""
    column = start + tl.arange(0, COLUMNS)
    inside = is_unit[:, None] & (column < columns)
    if BITS == 4:  # a byte holds an even column in its low half and the next one in its high half
        byte = start // 2 + tl.arange(0, COLUMNS // 2)
        pairs = tl.load(codes_ptr + unit[:, None] * (columns // 2) + byte, is_unit[:, None] & (byte < columns // 2), 0)
        codes = tl.reshape(tl.join(pairs & 15, pairs >> 4), (unit.shape[0], COLUMNS)).to(tl.float32)
    else:
        codes = tl.load(codes_ptr + unit[:, None] * columns + column, inside, 0).to(tl.float32)
    block = unit[:, None] * (columns // 32) + column // 32
    weights = codes * tl.load(scales_ptr + block, inside, 0.0).to(tl.float32)  # exact: 8 bits times 11
    if HAS_MINIMA:
        weights += tl.load(minima_ptr + block, inside, 0.0).to(tl.float32)
    return weights


@triton.jit
def packed(
    x_ptr, codes_ptr, scales_ptr, minima_ptr, bias_ptr, y_ptr, rows, columns, out,
    BITS: tl.constexpr, HAS_MINIMA: tl.constexpr, HAS_BIAS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_OUT: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)).to(tl.int64)
    unit = (tl.program_id(0) * TILE_OUT + tl.arange(0, TILE_OUT)).to(tl.int64)
    is_row, is_unit = row < rows, unit < out
    total = tl.zeros((TILE_ROWS, TILE_OUT), tl.float32)
    for start in range(0, columns, TILE_COLUMNS):
        column = start + tl.arange(0, TILE_COLUMNS)
        x = tl.load(x_ptr + row[:, None] * columns + column, is_row[:, None] & (column < columns), 0.0)
        w = unpack(codes_ptr, scales_ptr, minima_ptr, unit, is_unit, start, columns, BITS, HAS_MINIMA, TILE_COLUMNS)
        total = tl.dot(x, tl.trans(w.to(x.dtype)), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias_ptr + unit, is_unit, 0.0).to(tl.float32)
    tl.store(y_ptr + row[:, None] * out + unit, total.to(y_ptr.dtype.element_ty), is_row[:, None] & is_unit)


@triton.jit
def embed(
    ids_ptr, codes_ptr, scales_ptr, minima_ptr, y_ptr, columns,
    BITS: tl.constexpr, HAS_MINIMA: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program for so many columns of one row of a packed matrix."""
    row = tl.program_id(0).to(tl.int64)
    unit = tl.load(ids_ptr + row) + tl.zeros((1,), tl.int64)
    start = tl.program_id(1) * COLUMNS
    column = start + tl.arange(0, COLUMNS)
    w = unpack(codes_ptr, scales_ptr, minima_ptr, unit, unit >= 0, start, columns, BITS, HAS_MINIMA, COLUMNS)
    y = tl.reshape(w, (COLUMNS,)).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * columns + column, y, column < columns)
