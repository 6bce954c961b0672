"""Whether every operation that the Triton kernels override computes what the reference specifies.

By interpretation, unless HEADRACE_TEST_DEVICE=cuda has a card compute the very same. The interpreter runs a kernel's
programs one after the other in numpy: it shows wrong mathematics, masks and indices, and cannot show races or what a
card's own instructions round. Tolerances are relative to the largest output: fp32 sums in another order differ by some
1e-6, and by more where a card approximates exponentials and roots; fp16 and bf16 are rounded once here and once for
each operation there.
"""

from collections.abc import Callable

import pytest
import torch
import triton
from torch import Tensor

from model.kernels import Kernels
from model.kernels.reference import AttentionShape, LayerCache, Span, Weight
from model.kernels.triton import TritonKernels
from model.kernels.triton.attention import SPLIT
from model.quantization import PackedTensor

TOLERANCE = (
    {torch.float32: 2e-6, torch.float16: 2e-3}  # the interpreter's products do not know bf16
    if triton.knobs.runtime.interpret
    else {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
)
BLOCK = 16
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
    tested = {"prepare", "prepared_bytes", "linear", "embed", "rms_norm", "layer_norm"}
    tested |= {"rotate", "store", "attention", "activate", "gate", "argmax"}
    tested |= {"draw"}  # in test_triton_draw.py
    assert overridden == tested, "an operation was added or dropped: give it a comparison below, and its name here"


@pytest.mark.parametrize("form", ["F32", "Q4_0", "Q4_1", "Q8_0", "Q6_K"])
@pytest.mark.parametrize(("columns", "out"), [(32, 1), (96, 33), (256, 70)])
def test_linear(
    pair: tuple[TritonKernels, Kernels], make_weight: MakeWeight, form: str, columns: int, out: int
) -> None:
    if form == "Q6_K" and columns != 256:
        pytest.skip("its blocks have 256 columns")
    fast, plain = pair
    weight = make_weight(form, out, columns)
    bias = random(plain, out)
    for num_rows in (0, 1, 65):
        x_TD = random(plain, num_rows, columns)
        for case in (None, bias):
            actual = fast.linear(x_TD, fast.prepare(weight), case)
            expected = plain.linear(x_TD, plain.prepare(weight), case)
            assert_close(actual, expected) if num_rows else None
            assert actual.shape == (num_rows, out)


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
    for form in ("Q4_1", "Q8_0"):
        prepared = kernels.prepare(make_weight(form, 8, 64))
        parts = [getattr(prepared, name) for name in ("codes", "scales", "minima")]
        assert sum(part.nbytes for part in parts if part is not None) == kernels.prepared_bytes((8, 64), form)
    assert kernels.prepared_bytes((8, 64), "Q6_K") == 8 * 64 * 2


@pytest.mark.parametrize("width", [1, 64, 100])
def test_norms(pair: tuple[TritonKernels, Kernels], width: int) -> None:
    fast, plain = pair
    x, weight, bias = random(plain, 3, 2, width) * 5 + 1, torch.randn(width), torch.randn(width)
    assert_close(fast.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    if width > 1:  # of one number alone, the layer norm is the bias
        assert_close(fast.layer_norm(x, weight, None, 1e-5), plain.layer_norm(x, weight, None, 1e-5))
    assert_close(fast.layer_norm(x, weight, bias, 1e-5), plain.layer_norm(x, weight, bias, 1e-5))


@pytest.mark.parametrize("head_dim", [2, 24, 64])
def test_rotate(pair: tuple[TritonKernels, Kernels], head_dim: int) -> None:
    fast, plain = pair
    wide = random(plain, 5, 7, head_dim)
    angles = torch.randn(5, head_dim // 2)
    for x_THd in (wide, wide[:, 2:5]):
        assert_close(fast.rotate(x_THd, angles.cos(), angles.sin()), plain.rotate(x_THd, angles.cos(), angles.sin()))


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


def cache(kernels: Kernels, blocks: int, groups: int, head_dim: int) -> LayerCache:
    return LayerCache(
        random(kernels, blocks, groups, head_dim, BLOCK), random(kernels, blocks, groups, BLOCK, head_dim)
    )


def test_store(pair: tuple[TritonKernels, Kernels]) -> None:
    fast, plain = pair
    wide = random(plain, 4, 9, 24)
    slots = torch.tensor([0, 17, 31, 79])
    ours, theirs = cache(plain, 5, 3, 24), cache(plain, 5, 3, 24)
    for mine, other in zip((ours.keys, ours.values), (theirs.keys, theirs.values), strict=True):
        mine.copy_(other)
    fast.store(wide[:, 3:6], wide[:, 6:], ours, slots)
    plain.store(wide[:, 3:6], wide[:, 6:], theirs, slots)
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)


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
