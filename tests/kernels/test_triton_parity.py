"""Whether every operation that the Triton kernels override computes what the reference specifies.

By interpretation, unless HEADRACE_TEST_DEVICE=cuda has a card compute the very same. The interpreter runs a kernel's
programs one after the other in numpy: it shows wrong mathematics, masks and indices, and cannot show races or what a
card's own instructions round. Tolerances are relative to the largest output: fp32 sums in another order differ by some
1e-6, and by more where a card approximates exponentials and roots; fp16 and bf16 are rounded once here and once for
each operation there.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.kernels import Kernels
from model.kernels.reference import AttentionShape, LayerCache, Span, Weight, limit_of
from model.kernels.triton import TritonKernels
from model.kernels.triton.attention import SPLIT
from model.kernels.triton.packing import Packed
from model.quantization import PackedTensor
from model.quantization.float8 import Float8Layout, Float8Matrix

TOLERANCE = (
    {torch.float32: 2e-6, torch.float16: 2e-3}  # the interpreter's products do not know bf16
    if triton.knobs.runtime.interpret
    else {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
)
BLOCK = 16
STEP = {torch.float8_e4m3fn: 1 / 14}  # between the largest two numbers of a type that is not even
MakeWeight = Callable[[str, int, int], Weight]


@pytest.fixture(params=TOLERANCE, ids=str)
def pair(request: pytest.FixtureRequest, device: torch.device) -> tuple[TritonKernels, Kernels]:
    return TritonKernels(device, request.param), Kernels(device, request.param)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= TOLERANCE[actual.dtype], f"off by {error:.1e} of the largest output"


def random(kernels: Kernels, *shape: int) -> Tensor:
    return torch.randn(shape).to(kernels.dtype)


def test_every_override_is_compared_with_the_reference() -> None:
    overridden = {name for name in vars(TritonKernels) if name in vars(Kernels) and not name.startswith("_")}
    tested = {"prepare", "prepared_bytes", "linear", "embed", "stack", "linear_of_each"}
    tested |= {"rms_norm", "add_rms_norm", "layer_norm", "rotate_and_store", "attention", "activate", "gate", "argmax"}
    tested |= {"draw", "draw_one"}  # in test_triton_draw.py
    tested |= {"record", "attention_bytes"}  # in test_triton_graphs.py, and in test_measured_memory.py
    assert overridden == tested, "an operation was added or dropped: give it a comparison below, and its name here"


@pytest.mark.parametrize("form", ["F32", "Q4_0", "Q4_1", "Q8_0", "Q6_K"])
@pytest.mark.parametrize(("columns", "out"), [(32, 1), (96, 33), (256, 70)])
def test_linear(
    pair: tuple[TritonKernels, Kernels], make_weight: MakeWeight, form: str, columns: int, out: int
) -> None:
    if form == "Q6_K" and columns != 256:
        pytest.skip("its blocks have 256 columns")
    """From 65 rows on by the way for many."""
    fast, plain = pair
    fast.many_rows = 65
    weight = make_weight(form, out, columns)
    bias = random(plain, out)
    for num_rows in (0, 1, 65):
        x_TD = random(plain, num_rows, columns)
        for case in (None, bias):
            actual = fast.linear(x_TD, fast.prepare(weight), case)
            expected = plain.linear(x_TD, plain.prepare(weight), case)
            assert_close(actual, expected) if num_rows else None
            assert actual.shape == (num_rows, out)


@pytest.mark.parametrize("forms", [["F32"] * 5, ["Q4_1"] * 5, ["Q8_0"] * 5, ["F32", "Q4_0", "Q8_0", "Q4_0", "Q4_1"]])
def test_each_rows_own_matrix(pair: tuple[TritonKernels, Kernels], make_weight: MakeWeight, forms: list[str]) -> None:
    """None at all, one row, a whole tile, more than a tile; with the very bits of a product with one matrix."""
    fast, plain = pair
    weights = [make_weight(form, 33, 96) for form in forms]
    chosen = torch.tensor([1] * 66 + [4] * 64 + [2])[torch.randperm(131)]
    x_TD = random(plain, 131, 96)
    prepared = [fast.prepare(weight) for weight in weights]
    for rows in (slice(None), slice(2)):
        actual = fast.linear_of_each(x_TD[rows], chosen[rows], fast.stack(prepared))
        stack = plain.stack([plain.prepare(weight) for weight in weights])
        assert_close(actual, plain.linear_of_each(x_TD[rows], chosen[rows], stack))
        for index, weight in enumerate(prepared):
            own = chosen[rows] == index
            assert torch.equal(actual[own], fast.linear(x_TD[rows][own], weight))


@pytest.mark.parametrize("form", ["I4/32", "I4/96", "I8/32", "F8/32", "F8/0"])
def test_numbers_under_scales_of_any_group(
    pair: tuple[TritonKernels, Kernels], make_weight: MakeWeight, form: str
) -> None:
    """Exactly by the unit vectors, among others of their kind, and from 65 rows on by the way for many."""
    fast, plain = pair
    fast.many_rows = 65
    weights = [make_weight(form, 40, 192) for _ in range(3)]
    prepared, expected = [fast.prepare(weight) for weight in weights], plain.prepare(weights[0])
    unit = torch.eye(192).to(fast.dtype)[:64]
    assert torch.equal(fast.linear(unit, prepared[0]), plain.linear(unit, expected))
    ids = torch.tensor([39, 0, 39])
    assert torch.equal(fast.embed(ids, prepared[0]), plain.embed(ids, expected))
    x_TD = random(plain, 66, 192)
    assert_close(fast.linear(x_TD, prepared[0]), plain.linear(x_TD, expected))
    chosen = torch.arange(66) % 3
    each = fast.linear_of_each(x_TD, chosen, fast.stack(prepared))
    assert torch.equal(each[chosen == 0], fast.linear(x_TD[chosen == 0], prepared[0]))


def test_floats_of_8_bits_keep_every_value(device: torch.device) -> None:
    """A matrix that has them all, those that are no number too."""
    kernels = TritonKernels(device, torch.float32)
    numbers = torch.arange(256, dtype=torch.uint8, device="cpu").view(torch.float8_e4m3fn).repeat(8, 1)
    layout = Float8Layout("weight_scale", None, False, None)
    parts = {"weight": numbers, "weight_scale": torch.ones(1, device="cpu")}
    embedded = kernels.embed(torch.tensor([3]), kernels.prepare(Float8Matrix.build(layout, parts)))
    assert torch.equal(embedded.cpu().nan_to_num(99), numbers[:1].float().nan_to_num(99))


class WithoutHost(TorchDispatchMode):
    """Refuses what has to wait for a card, and so keeps a forward pass out of a graph."""

    waiting = ("aten.nonzero", "aten._unique", "aten.bincount", "aten._local_scalar_dense", "aten.unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not str(func).startswith(self.waiting), f"{func} needs the host to know a result"
        return func(*args, **(kwargs or {}))


def test_rows_find_their_matrices_without_the_host(device: torch.device) -> None:
    for kind, waits in ((TritonKernels, False), (Kernels, True)):
        kernels = kind(device, torch.float32)
        stack = kernels.stack([kernels.prepare(torch.randn(8, 32)) for _ in range(3)])
        x_TD, chosen = torch.randn(5, 32), torch.tensor([2, 0, 2, 2, 0])
        with pytest.raises(AssertionError, match="needs the host") if waits else nullcontext(), WithoutHost():
            kernels.linear_of_each(x_TD, chosen, stack)


@pytest.mark.parametrize("form", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_packed_weight_means_what_its_format_says(device: torch.device, make_weight: MakeWeight, form: str) -> None:
    """Exactly: a product with the unit vectors has no sum to round."""
    kernels = TritonKernels(device, torch.float32)
    weight = make_weight(form, 5, 96)
    assert isinstance(weight, PackedTensor)
    assert torch.equal(kernels.linear(torch.eye(96), kernels.prepare(weight)).T.cpu(), weight.dequantize())
    embedded = kernels.embed(torch.tensor([4, 0]), kernels.prepare(weight))
    assert torch.equal(embedded.cpu(), weight.dequantize()[[4, 0]])


def test_embed(pair: tuple[TritonKernels, Kernels], make_weight: MakeWeight) -> None:
    fast, plain = pair
    for form in ("F32", "Q4_1"):
        weight, ids = make_weight(form, 9, 1056), torch.tensor([8, 0, 8])
        assert torch.equal(fast.embed(ids, fast.prepare(weight)), plain.embed(ids, plain.prepare(weight)))


def test_prepared_bytes(device: torch.device, make_weight: MakeWeight) -> None:
    kernels = TritonKernels(device, torch.bfloat16)
    for form in ("Q4_1", "Q8_0", "I4/32", "I4/96", "I8/32", "F8/32", "F8/0"):
        prepared = kernels.prepare(make_weight(form, 8, 192))
        assert isinstance(prepared, Packed)
        assert prepared.nbytes == kernels.prepared_bytes((8, 192), form)
    for form in ("Q6_K", "I4/8"):
        assert kernels.prepared_bytes((8, 64), form) == 8 * 64 * 2


@pytest.mark.parametrize("width", [1, 64, 100])
def test_norms(pair: tuple[TritonKernels, Kernels], width: int) -> None:
    fast, plain = pair
    x, weight, bias = random(plain, 3, 2, width) * 5 + 1, torch.randn(width), torch.randn(width)
    assert_close(fast.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    if width > 1:  # of one number alone, the layer norm is the bias
        assert_close(fast.layer_norm(x, weight, None, 1e-5), plain.layer_norm(x, weight, None, 1e-5))
    assert_close(fast.layer_norm(x, weight, bias, 1e-5), plain.layer_norm(x, weight, bias, 1e-5))
    actual, expected = (kernels.add_rms_norm(x[:, 0], x[:, 1], weight, 1e-5) for kernels in pair)
    assert torch.equal(actual[0], expected[0])
    assert_close(actual[1], expected[1])


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # 1 / (1 + inf) is the 0 that it should be
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations(pair: tuple[TritonKernels, Kernels], activation: str) -> None:
    fast, plain = pair
    x = random(plain, 3, 2060) * 4
    assert_close(fast.activate(x, activation), plain.activate(x, activation))
    assert_close(fast.gate(x, activation), plain.gate(x, activation))


def test_argmax(device: torch.device) -> None:
    fast, plain = (kind(device, torch.float32) for kind in (TritonKernels, Kernels))
    x = torch.randn(6, 2500)
    x[1, 7] = x[1, 2400] = 99.0  # of equals the first
    x[2, 3], x[3, 2499], x[4, 0] = float("nan"), float("inf"), float("-inf")
    x[5] = -1e30
    assert torch.equal(fast.argmax(x), plain.argmax(x))
    assert fast.argmax(x)[:6].tolist()[1:] == [7, -1, -1, -1, 0]


def cache(kernels: Kernels, blocks: int, groups: int, head_dim: int, dtype: torch.dtype | None = None) -> LayerCache:
    """Keys in rows, as the Triton kernels want them."""
    keys, values = (random(kernels, blocks, groups, BLOCK, head_dim) for _ in range(2))
    if dtype is None:
        return LayerCache(keys.transpose(2, 3), values)
    scales, limit = torch.rand(2, blocks, groups, BLOCK) + 0.5, limit_of(dtype)
    keys, values = ((part.float() * limit / 5).to(dtype) for part in (keys, values))
    return LayerCache(keys.transpose(2, 3), values, scales / limit * 5)


def copy_of(held: LayerCache) -> LayerCache:
    return LayerCache(held.keys.clone(), held.values.clone(), None if held.scales is None else held.scales.clone())


@pytest.mark.parametrize("dtype", [None, torch.int8, torch.int16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("head_dim", [2, 24, 64])
def test_rotate_and_store(pair: tuple[TritonKernels, Kernels], head_dim: int, dtype: torch.dtype | None) -> None:
    """Rows that lie apart, keys in rows and in columns; an integer may be off by one where a rotation is rounded."""
    fast, plain = pair
    wide, slots, turns = random(plain, 4, 9, head_dim), torch.tensor([0, 17, 31, 79]), torch.randn(4, head_dim // 2)
    wide[2, 4] = 0.0  # a vector that no scale can stretch
    held = cache(plain, 5, 3, head_dim, dtype)
    for angles in (None, (turns.cos(), turns.sin())):
        ours, theirs = copy_of(held), copy_of(held)
        if angles:
            ours = replace(ours, keys=ours.keys.contiguous())
        q_THd = fast.rotate_and_store(wide[:, :3], wide[:, 3:6], wide[:, 6:], angles, ours, slots)
        assert_close(q_THd, plain.rotate_and_store(wide[:, :3], wide[:, 3:6], wide[:, 6:], angles, theirs, slots))
        off_by = 0.0 if dtype is None or angles is None else STEP.get(dtype) or 1 / torch.iinfo(dtype).max
        for mine, other in zip(ours.read(slots // BLOCK), theirs.read(slots // BLOCK), strict=True):
            assert (mine - other).abs().max() <= (TOLERANCE[plain.dtype] + off_by) * other.abs().max()
        untouched = [held.values[4, :, :15].float() for held in (ours, theirs)]
        assert torch.equal(*untouched), "something else was written to"


def spans_of(chunks: list[tuple[int, int]], blocks: int) -> list[Span]:
    """Chunks of (start, rows); each sequence's blocks are any of the cache's, in any order, none twice."""
    spans, row, free = [], 0, torch.randperm(blocks)
    for start, count in chunks:
        used = -(-(start + count) // BLOCK)
        spans.append(Span(row, row + count, start, free[:used]))
        row, free = row + count, free[used:]
    return spans


MIXED = [(0, 1), (0, 16), (15, 1), (16, 1), (17, 3), (31, 40), (200, 1), (0, 70)]


@pytest.mark.parametrize(("heads", "groups", "head_dim"), [(4, 4, 24), (8, 1, 16), (9, 3, 64)])
def test_attention(pair: tuple[TritonKernels, Kernels], heads: int, groups: int, head_dim: int) -> None:
    """Prefills, decodes, block borders, a full block, more rows than a tile has."""
    fast, plain = pair
    spans, held = spans_of(MIXED, 64), cache(plain, 64, groups, head_dim)
    q_THd = random(plain, spans[-1].last_row, heads, head_dim)
    for shape in (AttentionShape(0.2, None, None), AttentionShape(0.2, 20, None), AttentionShape(0.3, None, 5.0)):
        assert_close(fast.attention(q_THd, held, spans, shape), plain.attention(q_THd, held, spans, shape))


@pytest.mark.parametrize("shared", range(1, 9))
def test_attention_of_so_many_heads_a_group(device: torch.device, shared: int) -> None:
    """A block's border and its neighbours on either side, and more rows than a tile has."""
    fast, plain = (kind(device, torch.float32) for kind in (TritonKernels, Kernels))
    spans, held = spans_of([(15, 1), (16, 1), (17, 1), (0, 9)], 8), cache(plain, 8, 2, 16)
    q_THd, shape = random(plain, spans[-1].last_row, 2 * shared, 16), AttentionShape(0.25, None, None)
    assert_close(fast.attention(q_THd, held, spans, shape), plain.attention(q_THd, held, spans, shape))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.float8_e4m3fn], ids=str)
def test_attention_over_numbers_under_scales(pair: tuple[TritonKernels, Kernels], dtype: torch.dtype) -> None:
    fast, plain = pair
    spans, held = spans_of([(0, 1), (17, 3), (31, 20)], 16), cache(plain, 16, 2, 24, dtype)
    q_THd, shape = random(plain, spans[-1].last_row, 4, 24), AttentionShape(0.1, None, None)
    assert_close(fast.attention(q_THd, held, spans, shape), plain.attention(q_THd, held, spans, shape))


@pytest.mark.parametrize("window", [None, 1500])
def test_attention_over_several_splits(device: torch.device, window: int | None) -> None:
    fast, plain = (kind(device, torch.float32) for kind in (TritonKernels, Kernels))
    chunks = [(8190, 2), (SPLIT - 2, 4), (SPLIT - 1, 1), (2 * SPLIT, 1), (5, 1)]
    spans, held = spans_of(chunks, 800), cache(plain, 800, 2, 16)
    q_THd, shape = random(plain, spans[-1].last_row, 4, 16), AttentionShape(0.25, window, None)
    assert_close(fast.attention(q_THd, held, spans, shape), plain.attention(q_THd, held, spans, shape))


def test_what_is_not_in_a_context_is_not_read(device: torch.device) -> None:
    """Foreign blocks, and the rest of a sequence's last block, may hold anything."""
    kernels = TritonKernels(device, torch.float32)
    held = cache(kernels, 6, 1, 16)
    spans = [Span(0, 2, 16, torch.tensor([2, 4]))]
    q_THd, shape = torch.randn(2, 1, 16), AttentionShape(0.25, None, None)
    before = kernels.attention(q_THd, held, spans, shape)
    held.keys[[0, 1, 3, 5]] = held.values[[0, 1, 3, 5]] = float("nan")
    held.keys[4, :, :, 2:] = float("nan")
    held.values[4, :, 2:] = float("nan")
    assert torch.equal(kernels.attention(q_THd, held, spans, shape), before)


def test_formats_that_stay_packed(device: torch.device, make_weight: MakeWeight) -> None:
    kernels = TritonKernels(device, torch.bfloat16)
    assert not isinstance(kernels.prepare(make_weight("Q4_0", 32, 256)), Tensor)
    assert isinstance(kernels.prepare(make_weight("Q4_K", 32, 256)), Tensor)
