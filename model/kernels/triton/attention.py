"""Causal attention over a paged cache on a GPU, for chunks of any length in one launch.

A context is cut at fixed positions, every SPLIT of them, whatever is computed beside it. One program takes a tile of
queries (some rows of one chunk and all query heads that share a group's keys), and one split: it walks over the
split's keys in order with the running softmax of Milakov & Gimelshein 2018, as FlashAttention does (Dao et al. 2022).
Where a row sees keys of one split only, that is its result; else `combine` merges its splits in order, as
Flash-Decoding does (Dao et al. 2023), but for cuts that no batch can move. Keys that a row does not see change none
of its bits: they add zeros and multiply by ones. So a row's bits depend on its own context alone.
"""

import triton
import triton.language as tl

SPLIT = 1024  # positions; a long context of one sequence alone is so shared by several programs
TILE = 64  # queries of a program: the same number for a decode and a prefill, so that both use the same instructions
KEYS = 32  # taken at once; divides SPLIT
WARPS, STAGES = 8, 2  # with 4 warps, or with more keys on their way, 64 queries would not fit into registers
TILE_FIELDS = tl.constexpr(4)  # int64 of each tile of rows: its first, how many, the first's position, its table


@triton.jit
def attend(
    q_ptr, keys_ptr, values_ptr, tables_ptr, tiles_ptr, out_ptr, partial_ptr,
    q_stride, table_stride, groups, splits, scale, softcap, window,
    SHARED: tl.constexpr, PADDED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
    POSITIONS: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """SHARED query heads share a group's keys; PADDED and BLOCK_DIM are powers of two above SHARED and HEAD_DIM.

    A block of the cache has POSITIONS. `window` is 0 where a query sees all positions up to its own, `softcap` 0
    where scores are not capped. Of each row, head and split, `partial` takes HEAD_DIM weighted sums, the largest
    score and the sum of weights.
    """
    tile = tiles_ptr + tl.program_id(0) * TILE_FIELDS
    group, split = tl.program_id(1), tl.program_id(2)
    first_row, num_rows = tl.load(tile), tl.load(tile + 1)
    start, table = tl.load(tile + 2), tl.load(tile + 3)

    query = tl.arange(0, TILE)
    row, head = query // PADDED, query % PADDED
    is_query = (row < num_rows) & (head < SHARED)
    position = start + row
    place = tl.arange(0, BLOCK_DIM)
    inside = place < HEAD_DIM
    q_row = (first_row + row) * q_stride + (group * SHARED + head) * HEAD_DIM
    q = tl.load(q_ptr + q_row[:, None] + place, is_query[:, None] & inside, 0.0)

    lowest = tl.where(window > 0, tl.maximum(start + 1 - window, 0), 0)
    begin = tl.maximum(split * SPLIT, lowest // KEYS * KEYS)
    end = tl.minimum((split + 1) * SPLIT, start + num_rows)
    largest = tl.full((TILE,), float("-inf"), tl.float32)
    weight = tl.zeros((TILE,), tl.float32)
    total = tl.zeros((TILE, BLOCK_DIM), tl.float32)
    for first_key in range(begin, end, KEYS):
        key = first_key + tl.arange(0, KEYS)
        is_key = key < end
        block = tl.load(tables_ptr + table * table_stride + key // POSITIONS, is_key, 0)
        corner = (block * groups + group) * HEAD_DIM * POSITIONS
        k = tl.load(keys_ptr + (corner + key % POSITIONS) + place[:, None] * POSITIONS, inside[:, None] & is_key, 0.0)
        v = tl.load(values_ptr + (corner + key % POSITIONS * HEAD_DIM)[:, None] + place, is_key[:, None] & inside, 0.0)
        scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * scale
        if softcap > 0:
            scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
        seen = is_key & (key <= position[:, None])
        if window > 0:
            seen = seen & (key > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        top = tl.maximum(largest, tl.max(scores, 1))
        safe_top = tl.where(top == float("-inf"), 0.0, top)  # nothing seen yet: zeros stay zeros
        fade = tl.exp(largest - safe_top)
        weights = tl.exp(scores - safe_top[:, None])
        weight = weight * fade + tl.sum(weights, 1)
        total = tl.dot(weights.to(v.dtype), v, total * fade[:, None], input_precision="ieee")
        largest = top

    oldest = tl.where(window > 0, tl.maximum(position + 1 - window, 0), 0)
    is_here = is_query & (split <= position // SPLIT) & (split >= oldest // SPLIT)
    is_alone = oldest // SPLIT == position // SPLIT
    out_row = ((first_row + row) * groups + group) * SHARED + head
    y = total / tl.where(weight > 0, weight, 1.0)[:, None]
    whole = is_here & is_alone
    tl.store(out_ptr + out_row[:, None] * HEAD_DIM + place, y.to(out_ptr.dtype.element_ty), whole[:, None] & inside)
    part = is_here & ~is_alone
    partial_row = (out_row * splits + split) * (HEAD_DIM + 2)
    tl.store(partial_ptr + partial_row[:, None] + place, total, part[:, None] & inside)
    tl.store(partial_ptr + partial_row + HEAD_DIM, largest, part)
    tl.store(partial_ptr + partial_row + HEAD_DIM + 1, weight, part)


@triton.jit
def combine(
    partial_ptr, positions_ptr, out_ptr, heads, splits, window,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One program for one head of a row: its splits merged, first to last, where it has more than one."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions_ptr + row)
    oldest = tl.where(window > 0, tl.maximum(position + 1 - window, 0), 0)
    first, last = oldest // SPLIT, position // SPLIT
    place = tl.arange(0, BLOCK_DIM)
    inside = place < HEAD_DIM
    if first < last:
        largest = tl.full((), float("-inf"), tl.float32)
        weight = tl.zeros((), tl.float32)
        total = tl.zeros((BLOCK_DIM,), tl.float32)
        for split in range(first, last + 1):
            part = partial_ptr + ((row * heads + head) * splits + split) * (HEAD_DIM + 2)
            part_top = tl.load(part + HEAD_DIM)
            top = tl.maximum(largest, part_top)
            fade, part_fade = tl.exp(largest - top), tl.exp(part_top - top)
            weight = weight * fade + tl.load(part + HEAD_DIM + 1) * part_fade
            total = total * fade + tl.load(part + place, inside, 0.0) * part_fade
            largest = top
        y = total / weight
        tl.store(out_ptr + (row * heads + head) * HEAD_DIM + place, y.to(out_ptr.dtype.element_ty), inside)
