"""Which token each row of logits chooses on a GPU: the likeliest, or one draw among what truncation leaves.

One program takes one row and goes over it several times, in the order of ids and in steps of one size, so that every
sum has one order. Nothing is sorted: where truncation cuts is found digit by digit, for all values of a digit at
once, as in a radix sort. Weights are fp64, as in `model/kernels/drawing.py`, which specifies all this; its sums run in
another order, so that of two tokens whose border a draw hits to some 1e-16 the other one may be chosen.
"""

import triton
import triton.language as tl

BLOCK = 512  # numbers taken at once
DIGITS, BITS = tl.constexpr(16), tl.constexpr(4)  # of a key with 32 bits
SMALLEST = tl.constexpr(1e-300)  # a share of the likeliest token's weight that none reaches but by being there


@triton.jit
def logits_at(x_ptr, allowed_ptr, column, width, IS_MASKED: tl.constexpr):
    """-inf where there is no column, or none that is allowed."""
    inside = column < width
    if IS_MASKED:
        inside = inside & (tl.load(allowed_ptr + column, inside, 0) != 0)
    return tl.load(x_ptr + column, inside, float("-inf"))


@triton.jit
def key_of(x):
    """An unsigned integer that orders as x does; the two zeros have one."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 0, bits | 0x80000000, bits ^ 0xFFFFFFFF)


@triton.jit
def number_of(key):
    """The x that has this key."""
    bits = tl.where(key >> 31 == 0, key ^ 0xFFFFFFFF, key & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def weight_of(x, largest, temperature):
    """The unnormalised probability, fp64; of the likeliest it is 1."""
    return tl.exp((x.to(tl.float64) - largest.to(tl.float64)) / temperature)


@triton.jit
def best_of(x_ptr, allowed_ptr, width, IS_MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """The largest allowed number, and the first column that has it; -1 if there is none or a number is not finite."""
    largest = tl.full((), float("-inf"), tl.float32)
    best = tl.full((), -1, tl.int32)
    strange = tl.full((), 0, tl.int32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + column, column < width, 0.0)
        strange = tl.maximum(strange, tl.max((~(tl.abs(x) < float("inf"))).to(tl.int32)))
        x = logits_at(x_ptr, allowed_ptr, column, width, IS_MASKED)
        found = tl.max(x)
        place = tl.min(tl.where(x == found, column, width))
        best = tl.where(found > largest, place, best)
        largest = tl.maximum(largest, found)
    return largest, tl.where(strange > 0, -1, best)


@triton.jit
def amount_above(
    x_ptr, allowed_ptr, width, edge, largest, temperature,
    IS_WEIGHED: tl.constexpr, IS_MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many numbers have a larger key than `edge`, or what they weigh."""
    amount = tl.zeros((), tl.float64)
    for start in range(0, width, BLOCK):
        x = logits_at(x_ptr, allowed_ptr, start + tl.arange(0, BLOCK), width, IS_MASKED)
        each = weight_of(x, largest, temperature) if IS_WEIGHED else 1.0
        amount += tl.sum(tl.where(key_of(x) > edge, each, 0.0))
    return amount


@triton.jit
def key_reaching(
    goal, x_ptr, allowed_ptr, width, edge, largest, temperature,
    IS_WEIGHED: tl.constexpr, IS_MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest key for which the numbers from it on, and above `edge`, are or weigh `goal` in all."""
    key = tl.zeros((), tl.uint32)
    digit = tl.arange(0, DIGITS).to(tl.uint32)
    for place in range(32 // BITS):
        shift = 32 - BITS - place * BITS
        candidates = key | (digit << shift)
        amounts = tl.zeros((DIGITS,), tl.float64)
        for start in range(0, width, BLOCK):
            x = logits_at(x_ptr, allowed_ptr, start + tl.arange(0, BLOCK), width, IS_MASKED)
            own = key_of(x)
            each = tl.where(own > edge, weight_of(x, largest, temperature) if IS_WEIGHED else 1.0, 0.0)
            amounts += tl.sum(tl.where(own[:, None] >= candidates, each[:, None], 0.0), 0)
        reached = tl.sum((amounts >= goal).to(tl.uint32))  # they fall from digit to digit, and reached it before
        key = key | (tl.maximum(reached, 1) - 1 << shift)
    return key


@triton.jit
def truncation(
    x_ptr, allowed_ptr, width, largest, temperature, top_p, top_k,
    IS_MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is kept: numbers with a larger key than the first result, and the first so many that have it."""
    edge = tl.zeros((), tl.uint32)
    ties = tl.zeros((), tl.float64)
    if (top_k > 0) & (top_k < width):
        goal = top_k.to(tl.float64)
        edge = key_reaching(goal, x_ptr, allowed_ptr, width, edge, largest, temperature, False, IS_MASKED, BLOCK)
        ties = goal - amount_above(x_ptr, allowed_ptr, width, edge, largest, temperature, False, IS_MASKED, BLOCK)
    if top_p < 1.0:
        above = amount_above(x_ptr, allowed_ptr, width, edge, largest, temperature, True, IS_MASKED, BLOCK)
        tie = tl.where(ties > 0, weight_of(number_of(edge), largest, temperature), 0.0)
        goal = tl.maximum((above + ties * tie) * top_p, SMALLEST)
        if above >= goal:
            edge = key_reaching(goal, x_ptr, allowed_ptr, width, edge, largest, temperature, True, IS_MASKED, BLOCK)
            above = amount_above(x_ptr, allowed_ptr, width, edge, largest, temperature, True, IS_MASKED, BLOCK)
            tie = weight_of(number_of(edge), largest, temperature)
            ties = width.to(tl.float64)
        ties = tl.minimum(ties, tl.maximum(tl.ceil((goal - above) / tie), 1.0))
    return edge, ties


@triton.jit
def kept_weights(x, edge, ties, seen, largest, temperature, min_p):
    """What each number weighs, 0 where it is cut off; `seen` ties have come before."""
    key = key_of(x)
    rank = seen + tl.cumsum((key == edge).to(tl.int32))
    weight = weight_of(x, largest, temperature)
    is_kept = ((key > edge) | ((key == edge) & (rank <= ties))) & (weight >= min_p)
    return tl.where(is_kept, weight, 0.0), tl.max(rank)


@triton.jit
def uniform(seed, position):
    """As in `philox.py`: fp64 in [0, 1), with 53 random bits."""
    low, high = (position & 0xFFFFFFFF).to(tl.uint32), (position >> 32).to(tl.uint32)
    first, second, _, _ = tl.philox(seed, low, high, low * 0, low * 0)
    return ((first.to(tl.uint64) << 21) | (second.to(tl.uint64) >> 11)).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def drawn(
    share, x_ptr, allowed_ptr, width, edge, ties, largest, temperature, min_p,
    IS_MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first column at which the weights so far pass `share` of all."""
    total = tl.zeros((), tl.float64)
    seen = tl.zeros((), tl.int32)
    for start in range(0, width, BLOCK):
        x = logits_at(x_ptr, allowed_ptr, start + tl.arange(0, BLOCK), width, IS_MASKED)
        weights, seen = kept_weights(x, edge, ties, seen, largest, temperature, min_p)
        total += tl.sum(weights)
    below = ((total.to(tl.int64, bitcast=True)) - 1).to(tl.float64, bitcast=True)  # the next smaller number
    target = tl.minimum(share * total, below)
    before = tl.zeros((), tl.float64)
    seen = tl.zeros((), tl.int32)
    first = width
    last = tl.full((), -1, tl.int32)  # chosen where rounding lets the sums end below the target
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = logits_at(x_ptr, allowed_ptr, column, width, IS_MASKED)
        weights, seen = kept_weights(x, edge, ties, seen, largest, temperature, min_p)
        passes = (weights > 0) & (before + tl.cumsum(weights) > target)
        first = tl.minimum(first, tl.min(tl.where(passes, column, width)))
        last = tl.maximum(last, tl.max(tl.where(weights > 0, column, -1)))
        before += tl.sum(weights)
    return tl.where(first < width, first, last)


@triton.jit
def argmax(x_ptr, best_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    _, best = best_of(x_ptr + row * width, x_ptr, width, False, BLOCK)
    tl.store(best_ptr + row, best.to(tl.int64))


@triton.jit
def draw(
    x_ptr, allowed_ptr, temperature_ptr, top_p_ptr, min_p_ptr, top_k_ptr, seed_ptr, position_ptr, ids_ptr, width,
    IS_MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * width
    if IS_MASKED:
        allowed_ptr += row * width
    largest, token = best_of(x_ptr, allowed_ptr, width, IS_MASKED, BLOCK)
    temperature = tl.load(temperature_ptr + row)
    if (token >= 0) & (temperature > 0):
        top_p, top_k = tl.load(top_p_ptr + row), tl.load(top_k_ptr + row)
        edge, ties = truncation(x_ptr, allowed_ptr, width, largest, temperature, top_p, top_k, IS_MASKED, BLOCK)
        share = uniform(tl.load(seed_ptr + row), tl.load(position_ptr + row))
        min_p = tl.load(min_p_ptr + row)
        token = drawn(
            share, x_ptr, allowed_ptr, width, edge, ties, largest, temperature, min_p, IS_MASKED, BLOCK
        )  # fmt: skip
    tl.store(ids_ptr + row, token.to(tl.int64))
