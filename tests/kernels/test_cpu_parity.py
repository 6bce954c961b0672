"""Whether every operation that the C++ kernels override computes what the reference specifies.

Tolerances are relative to the largest output, for products to the largest sum of magnitudes |x| |W|. Sums in another
order than torch's differ by some 1e-6; 16-bit activations against packed weights, with a step of 1/32767 of a block's
largest value, by 2e-5; 8-bit ones by 5e-3.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.kernels import Kernels
from model.kernels.cpu import CpuKernels, load
from model.kernels.cpu.packing import Panels, pack
from model.kernels.reference import AttentionShape, LayerCache, Span, Weight, is_scaled

Check = Callable[[CpuKernels, Kernels], None]
MakeWeight = Callable[[str, int, int], Weight]

FORMATS = {
    **dict.fromkeys(["F32", "F16", "BF16", "Q2_K"], 1e-6),  # Q2_K is dequantised
    **dict.fromkeys(["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q3_K", "Q4_K", "Q5_K", "Q6_K"], 2e-5),
}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert actual.is_contiguous()
    assert actual.dtype == expected.dtype
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"off by {error:.1e} of the largest output"


def assert_product(kernels: CpuKernels, reference: Kernels, weight: Weight, x_TD: Tensor, tolerance: float) -> None:
    fast, plain = kernels.prepare(weight), reference.prepare(weight)
    assert isinstance(plain, Tensor)
    bias = torch.randn(len(plain))
    magnitude = (x_TD.abs() @ plain.abs().T).max()
    for case in (None, bias):
        actual, expected = kernels.linear(x_TD, fast, case), reference.linear(x_TD, plain, case)
        assert actual.shape == expected.shape
        error = (actual - expected).abs().max() / magnitude
        assert error <= tolerance, f"off by {error:.1e} of the magnitudes"


def test_every_override_is_compared_with_the_reference() -> None:
    overridden = {name for name in vars(CpuKernels) if name in vars(Kernels) and not name.startswith("_")}
    tested = {"prepare", "prepared_bytes", "linear", "embed", "rms_norm", "layer_norm"}
    tested |= {"rotate", "store", "attention", "activate", "gate", "add", "scale", "argmax"}
    tested |= {"record"}  # in tests/model/test_recording.py
    assert overridden == tested, "an operation was added or dropped: give it a comparison below, and its name here"


@pytest.mark.parametrize("rows", [1, 7, 8, 29])
@pytest.mark.parametrize("name", FORMATS)
def test_linear(kernels: CpuKernels, reference: Kernels, make_weight: MakeWeight, name: str, rows: int) -> None:
    weight = make_weight(name, rows, 512)
    for num_rows in (1, 2, 3, 4, 5, 13, 70):
        x_TD = torch.randn(num_rows, 512) * torch.rand(num_rows, 1) * 10
        assert_product(kernels, reference, weight, x_TD, FORMATS[name])


@pytest.mark.parametrize("name", FORMATS)
def test_linear_of_no_rows(kernels: CpuKernels, make_weight: MakeWeight, name: str) -> None:
    """As the head has them in a step that computes only the middle of a prompt."""
    assert kernels.linear(torch.empty(0, 512), kernels.prepare(make_weight(name, 8, 512))).shape == (0, 8)


@pytest.mark.parametrize("columns", [1, 7, 33, 100])
@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_linear_of_any_width(
    kernels: CpuKernels, reference: Kernels, make_weight: MakeWeight, name: str, columns: int
) -> None:
    assert_product(kernels, reference, make_weight(name, 17, columns), torch.randn(9, columns), 1e-6)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K"])
def test_linear_with_eight_bit_activations(
    kernels: CpuKernels, reference: Kernels, make_weight: MakeWeight, name: str
) -> None:
    fast = CpuKernels(kernels.native, kernels.level, kernels.operations, activations="int8")
    weight, x_TD = make_weight(name, 40, 512), torch.randn(11, 512)
    assert_product(fast, reference, weight, x_TD, 5e-3)
    with pytest.raises(AssertionError, match="off by"):  # this mode is there to be coarser
        assert_product(fast, reference, weight, x_TD, FORMATS[name])


@pytest.mark.parametrize("name", FORMATS)
def test_embed_is_exact(kernels: CpuKernels, reference: Kernels, make_weight: MakeWeight, name: str) -> None:
    weight = make_weight(name, 29, 256)
    ids_T = torch.tensor([28, 0, 7, 8, 28])
    actual = kernels.embed(ids_T, kernels.prepare(weight))
    assert torch.equal(actual, reference.embed(ids_T, reference.prepare(weight)))


@pytest.mark.parametrize("name", FORMATS)
def test_the_memory_that_a_matrix_takes_is_foretold(kernels: CpuKernels, make_weight: MakeWeight, name: str) -> None:
    panels = kernels.prepare(make_weight(name, 60, 512))
    assert isinstance(panels, Panels)
    assert panels.nbytes == kernels.prepared_bytes((60, 512), name)
    if name in ("Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "F32"):
        whole = make_weight(name, 64, 512)
        assert pack(whole).nbytes == whole.nbytes, "repacking costs no memory"


@pytest.mark.parametrize("name", ["I4/32", "I4/96", "I8/32"])
def test_integers_of_any_group(kernels: CpuKernels, reference: Kernels, make_weight: MakeWeight, name: str) -> None:
    weight = make_weight(name, 40, 192)
    assert_product(kernels, reference, weight, torch.randn(9, 192), 2e-5)
    panels, ids_T = kernels.prepare(weight), torch.arange(40)
    assert torch.equal(kernels.embed(ids_T, panels), reference.embed(ids_T, reference.prepare(weight)))
    assert isinstance(panels, Panels)
    assert panels.nbytes == kernels.prepared_bytes((40, 192), name)


def test_a_bad_activation_shows_in_its_own_row_only(kernels: CpuKernels, make_weight: MakeWeight) -> None:
    for name in ("Q4_1", "Q8_0", "F32"):
        weight = kernels.prepare(make_weight(name, 16, 64))
        x_TD = torch.randn(6, 64)
        clean = kernels.linear(x_TD, weight)
        x_TD[2, 5], x_TD[4, 40] = float("nan"), float("inf")
        y = kernels.linear(x_TD, weight)
        assert not y[[2, 4]].isfinite().any()
        assert torch.equal(y[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


@pytest.mark.parametrize("columns", [1, 8, 83, 576])
def test_norms(kernels: CpuKernels, reference: Kernels, columns: int) -> None:
    x, weight, bias = torch.randn(3, 5, columns) * 7 + 1, torch.randn(columns), torch.randn(columns)
    assert_close(kernels.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), 1e-6)
    assert_close(kernels.layer_norm(x, weight, bias, 1e-5), reference.layer_norm(x, weight, bias, 1e-5), 2e-6)
    if columns > 1:
        assert_close(kernels.layer_norm(x, weight, None, 1e-5), reference.layer_norm(x, weight, None, 1e-5), 2e-6)


@pytest.mark.parametrize("head_dim", [2, 20, 64, 128])
def test_rotate(kernels: CpuKernels, reference: Kernels, head_dim: int) -> None:
    wide = torch.randn(11, 9, head_dim)  # rotated as it lies within the product of queries, keys and values
    angles = torch.rand(11, head_dim // 2) * 1000
    for x_THd in (wide, wide[:, 2:5]):
        expected = reference.rotate(x_THd, angles.cos(), angles.sin())
        assert_close(kernels.rotate(x_THd, angles.cos(), angles.sin()), expected, 1e-6)


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations(kernels: CpuKernels, reference: Kernels, name: str) -> None:
    extremes = torch.tensor([0.0, -0.0, 1e-8, -1e-8, 20, -20, 90, -90, 3e18, -3e18])
    x = torch.cat([torch.randn(7, 80) * 4, extremes.repeat(8)[None]])
    assert torch.allclose(kernels.activate(x, name), reference.activate(x, name), rtol=1e-6, atol=3e-6)
    gate_up_TF = torch.randn(5, 166) * 4
    assert torch.allclose(kernels.gate(gate_up_TF, name), reference.gate(gate_up_TF, name), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 8, 577])
def test_sums_and_multiples_are_exact(kernels: CpuKernels, reference: Kernels, columns: int) -> None:
    x, y = torch.randn(9, columns), torch.randn(9, columns)
    assert torch.equal(kernels.add(x, y), reference.add(x, y))
    assert torch.equal(kernels.scale(x, 1.7), reference.scale(x, 1.7))


@pytest.mark.parametrize("columns", [1, 7, 8, 100, 49152])
def test_argmax(kernels: CpuKernels, reference: Kernels, columns: int) -> None:
    x_TV = torch.randn(11, columns)
    x_TV[1] = -3e38
    x_TV[2, columns // 2 :] = 9.0  # the first of equals
    for row, value in ((4, float("nan")), (5, float("inf")), (6, float("-inf"))):
        x_TV[row, columns - 1] = value
    x_TV[7, columns - 1] = 3e38
    found = kernels.argmax(x_TV)
    assert torch.equal(found, reference.argmax(x_TV))
    assert found[[1, 2, 4, 5, 6, 7]].tolist() == [0, columns // 2, -1, -1, -1, columns - 1]


def empty_cache(num_blocks: int, groups: int, head_dim: int, dtype: torch.dtype, size: int = 16) -> LayerCache:
    """Every number that is read without having been written shows."""
    nothing = 99 if is_scaled(dtype) else float("nan")
    keys = torch.full((num_blocks, groups, head_dim, size), nothing).to(dtype)
    values = torch.full((num_blocks, groups, size, head_dim), nothing).to(dtype)
    scales = torch.full((2, num_blocks, groups, size), float("nan")) if is_scaled(dtype) else None
    return LayerCache(keys, values, scales)


def filled_cache(
    kernels: Kernels, contexts: list[int], groups: int, head_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[LayerCache, list[Tensor]]:
    """Random keys and values of several sequences whose blocks are shuffled among each other."""
    counts = [-(-context // 16) for context in contexts]
    cache = empty_cache(sum(counts) + 3, groups, head_dim, dtype)
    tables = list(torch.randperm(sum(counts) + 3)[: sum(counts)].split(counts))
    for context, blocks in zip(contexts, tables, strict=True):
        positions = torch.arange(context)
        slots = blocks[positions // 16] * 16 + positions % 16
        kernels.store(torch.randn(context, groups, head_dim), torch.randn(context, groups, head_dim), cache, slots)
    return cache, tables


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int16, torch.int8, torch.float8_e4m3fn])
def test_store(kernels: CpuKernels, reference: Kernels, dtype: torch.dtype) -> None:
    heads = torch.randn(10, 7, 20)
    heads[3, 4], heads[4, 6] = 0.0, torch.tensor([1e-35, *[0.0] * 19])
    slots = torch.randperm(5 * 16)[:10]
    fast, plain = empty_cache(5, 2, 20, dtype), empty_cache(5, 2, 20, dtype)
    kernels.store(heads[:, 3:5], heads[:, 5:], fast, slots)
    reference.store(heads[:, 3:5], heads[:, 5:], plain, slots)
    assert torch.equal(fast.keys.float().nan_to_num(99), plain.keys.float().nan_to_num(99))
    assert torch.equal(fast.values.float().nan_to_num(99), plain.values.float().nan_to_num(99))
    if fast.scales is not None and plain.scales is not None:
        assert torch.equal(fast.scales.nan_to_num(99), plain.scales.nan_to_num(99))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
def test_a_cache_of_integers_errs_by_half_a_step(kernels: CpuKernels, dtype: torch.dtype) -> None:
    cache, (blocks,) = filled_cache(kernels, [40], 2, 64, dtype)
    plain = empty_cache(6, 2, 64, torch.float32)
    k_TGd, v_TGd = torch.randn(40, 2, 64), torch.randn(40, 2, 64)
    slots = blocks[torch.arange(40) // 16] * 16 + torch.arange(40) % 16
    kernels.store(k_TGd, v_TGd, cache, slots)
    kernels.store(k_TGd, v_TGd, plain, slots)
    assert cache.scales is not None
    for quantised, exact, scales in zip(cache.read(blocks), plain.read(blocks), cache.scales, strict=True):
        error = (quantised - exact)[quantised.isfinite() & exact.isfinite()].abs()
        assert 0 < error.max() <= 0.51 * scales[blocks].nan_to_num().max()


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8, torch.float8_e4m3fn])
def test_a_bad_value_shows_through_a_cache_of_integers(kernels: CpuKernels, dtype: torch.dtype) -> None:
    cache, (blocks,) = filled_cache(kernels, [20], 1, 64, dtype)
    k_TGd, v_TGd = torch.randn(1, 1, 64), torch.randn(1, 1, 64)
    v_TGd[0, 0, 7] = float("nan")
    kernels.store(k_TGd, v_TGd, cache, blocks[1:] * 16)
    spans, shape = [Span(0, 1, 15, blocks), Span(1, 2, 19, blocks)], AttentionShape(0.125, None, None)
    out = kernels.attention(torch.randn(2, 1, 64), cache, spans, shape)
    assert out[0].isfinite().all()
    assert not out[1].isfinite().any()


SHAPES = [  # query heads, KV heads, head size
    (9, 3, 64), (4, 4, 32), (4, 2, 80), (5, 1, 96), (6, 1, 128), (7, 1, 64), (8, 1, 256), (2, 2, 20), (1, 1, 8),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int16, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("heads", "groups", "head_dim"), SHAPES)
def test_attention_over_several_sequences(
    kernels: CpuKernels, reference: Kernels, heads: int, groups: int, head_dim: int, dtype: torch.dtype
) -> None:
    contexts, rows = [1, 15, 16, 17, 255, 256, 257, 300], [1, 15, 3, 1, 1, 2, 5, 60]
    cache, tables = filled_cache(kernels, contexts, groups, head_dim, dtype)
    spans, first = [], 0
    for context, count, blocks in zip(contexts, rows, tables, strict=True):
        spans.append(Span(first, first + count, context - count, blocks))
        first += count
    q_THd = torch.randn(first, heads, head_dim) * 2
    shape = AttentionShape(head_dim**-0.5, None, None)
    expected = reference.attention(q_THd, cache, spans, shape)
    assert_close(kernels.attention(q_THd, cache, spans, shape), expected, 3e-6)


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("window", [None, 1, 16, 100, 255, 256, 257, 4096])
def test_attention_with_windows_and_softcaps(
    kernels: CpuKernels, reference: Kernels, window: int | None, softcap: float | None
) -> None:
    cache, (blocks,) = filled_cache(kernels, [600], 2, 64)
    q_THd = torch.randn(90, 6, 64) * 3
    spans, shape = [Span(0, 90, 510, blocks)], AttentionShape(0.125, window, softcap)
    if window is not None and window < 256:
        forget(cache, blocks[: (511 - window) // 16])
    expected = reference.attention(q_THd, cache, spans, shape)
    assert_close(kernels.attention(q_THd, cache, spans, shape), expected, 3e-6)


def forget(cache: LayerCache, blocks: Tensor) -> None:
    """Blocks that a window has left behind may be freed, and hold anything."""
    cache.keys[blocks] = float("nan")
    cache.values[blocks] = float("nan")


def test_attention_over_a_long_context(kernels: CpuKernels, reference: Kernels) -> None:
    cache, (blocks,) = filled_cache(kernels, [8192], 1, 64)
    q_THd = torch.randn(2, 3, 64) * 4
    spans, shape = [Span(0, 2, 8190, blocks)], AttentionShape(0.125, None, None)
    expected = reference.attention(q_THd, cache, spans, shape)
    assert_close(kernels.attention(q_THd, cache, spans, shape), expected, 5e-6)


def test_attention_on_blocks_of_a_size_the_kernels_do_not_take(kernels: CpuKernels, reference: Kernels) -> None:
    cache = empty_cache(2, 1, 64, torch.float32, size=8)
    kernels.store(torch.randn(16, 1, 64), torch.randn(16, 1, 64), cache, torch.arange(16))
    q_THd, spans = torch.randn(1, 2, 64), [Span(0, 1, 15, torch.arange(2))]
    shape = AttentionShape(0.125, None, None)
    expected = reference.attention(q_THd, cache, spans, shape)
    assert_close(kernels.attention(q_THd, cache, spans, shape), expected, 3e-6)


def test_a_level_that_the_processor_lacks_is_not_loaded() -> None:
    assert load(level="tomorrow") is None
