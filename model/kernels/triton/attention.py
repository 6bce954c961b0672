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

from model.kernels.triton.float8 import from_float8

SPLIT = 1024  # positions; a long context of one sequence alone is so shared by several programs
TILE = 64  # queries of a program: the same number for a decode and a prefill, so that both use the same instructions
KEYS = 32  # taken at once; divides SPLIT
WARPS, STAGES = 8, 2  # with 4 warps, or with more keys on their way, 64 queries would not fit into registers
TILE_FIELDS = tl.constexpr(4)  # int64 of a tile: its first row, how many, the first's position, where its table begins


@triton.jit
def oldest_seen(position, window):
    """The first position that a query sees; a window of 0 is as long as the context."""
    return tl.where(window > 0, tl.maximum(position + 1 - window, 0), 0)


@triton.jit
def load_scaled(numbers_ptr, scales_ptr, numbers_at, scales_at, is_number, is_key, HAS_SCALES: tl.constexpr):
    """Keys or values as the cache means them; what has scales becomes fp32."""
    numbers = tl.load(numbers_ptr + numbers_at, is_number, 0)
    if numbers_ptr.dtype.element_ty == tl.uint8:
        numbers = from_float8(numbers)
    if HAS_SCALES:
        numbers = numbers.to(tl.float32) * tl.load(scales_ptr + scales_at, is_key, 0.0)
    return numbers


@triton.jit
def softmax_step(scores, largest, weight):
    """Weights of these scores, and by what to multiply all that has been summed up before them."""
    top = tl.maximum(largest, tl.max(scores, 1))
    safe_top = tl.where(top == float("-inf"), 0.0, top)  # nothing seen yet: zeros stay zeros
    fade = tl.exp(largest - safe_top)
    weights = tl.exp(scores - safe_top[:, None])
    return weights, fade, top, weight * fade + tl.sum(weights, 1)


@triton.jit
def store_sums(
    out_ptr, partial_ptr, total, largest, weight, is_query, out_row, position, split, splits, window,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """As the result where a query sees keys of this split alone, else as a part of it; of other queries nothing."""
    place = tl.arange(0, BLOCK_DIM)
    inside = place < HEAD_DIM
    oldest = oldest_seen(position, window)
    is_here = is_query & (split <= position // SPLIT) & (split >= oldest // SPLIT)
    is_alone = oldest // SPLIT == position // SPLIT
    y = total / tl.where(weight > 0, weight, 1.0)[:, None]
    whole = (is_here & is_alone)[:, None] & inside
    tl.store(out_ptr + out_row[:, None] * HEAD_DIM + place, y.to(out_ptr.dtype.element_ty), whole)
    part = is_here & ~is_alone
    partial_row = (out_row * splits + split) * (HEAD_DIM + 2)
    tl.store(partial_ptr + partial_row[:, None] + place, total, part[:, None] & inside)
    tl.store(partial_ptr + partial_row + HEAD_DIM, largest, part)
    tl.store(partial_ptr + partial_row + HEAD_DIM + 1, weight, part)


@triton.jit
def attend(
    q_ptr, keys_ptr, values_ptr, scales_ptr, tables_ptr, tiles_ptr, out_ptr, partial_ptr,
    q_stride, key_stride, place_stride, scales_stride, groups, splits, scale, softcap, window,
    SHARED: tl.constexpr, PADDED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
    POSITIONS: tl.constexpr, HAS_SCALES: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """SHARED query heads share a group's keys; PADDED and BLOCK_DIM are powers of two above SHARED and HEAD_DIM.

    A block of the cache has POSITIONS, whose keys lie `key_stride` numbers apart and a key's own `place_stride`; where
    they have scales, those of values lie `scales_stride` behind those of keys. `window` is 0 where a query sees all
    positions up to its own, `softcap` 0 where scores are not capped. Of each row, head and split, `partial` takes
    HEAD_DIM weighted sums, the largest score and the sum of weights.
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

    begin = tl.maximum(split * SPLIT, oldest_seen(start, window) // KEYS * KEYS)
    end = tl.minimum((split + 1) * SPLIT, start + num_rows)
    largest = tl.full((TILE,), float("-inf"), tl.float32)
    weight = tl.zeros((TILE,), tl.float32)
    total = tl.zeros((TILE, BLOCK_DIM), tl.float32)
    for first_key in range(begin, end, KEYS):
        key = first_key + tl.arange(0, KEYS)
        is_key = key < end
        block = tl.load(tables_ptr + table + key // POSITIONS, is_key, 0)
        corner = (block * groups + group) * POSITIONS
        offset = key % POSITIONS
        k_at = corner * HEAD_DIM + offset * key_stride + place[:, None] * place_stride
        v_at = (corner + offset)[:, None] * HEAD_DIM + place
        k = load_scaled(keys_ptr, scales_ptr, k_at, corner + offset, inside[:, None] & is_key, is_key, HAS_SCALES)
        v = load_scaled(
            values_ptr, scales_ptr, v_at, (scales_stride + corner + offset)[:, None],
            is_key[:, None] & inside, is_key[:, None], HAS_SCALES,
        )  # fmt: skip
        scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * scale
        if softcap > 0:
            scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
        seen = is_key & (key <= position[:, None]) & (key >= oldest_seen(position, window)[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        weights, fade, largest, weight = softmax_step(scores, largest, weight)
        total = tl.dot(weights.to(q.dtype), v.to(q.dtype), total * fade[:, None], input_precision="ieee")

    out_row = ((first_row + row) * groups + group) * SHARED + head
    store_sums(
        out_ptr, partial_ptr, total, largest, weight, is_query, out_row, position, split, splits, window,
        HEAD_DIM, BLOCK_DIM, SPLIT,
    )  # fmt: skip


@triton.jit
def combine(
    partial_ptr, positions_ptr, out_ptr, heads, splits, window,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One program for one head of a row: its splits merged, first to last, where it has more than one."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions_ptr + row)
    oldest = oldest_seen(position, window)
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
