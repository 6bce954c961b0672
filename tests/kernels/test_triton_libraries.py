"""Whether libraries are asked for what the reference specifies; what they answer, only a card can tell."""

import inspect
from typing import Any

import pytest
import quantizers
import torch
import torch.nn.attention.varlen as varlen
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from model.kernels import Kernels, select
from model.kernels.reference import AttentionShape, LayerCache, Span, Weight
from model.kernels.triton import LibraryKernels, TritonKernels, activate_flash, libraries
from model.quantization.float8 import Float8Layout, Float8Matrix
from model.quantization.rounding import Rounding

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="a card would be asked to compute on a CPU")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
HALF = torch.float16
PLAIN = AttentionShape(0.25, None, None)


def plainly(*args: Any, **named: Any) -> Tensor:
    """What the documentation of torch's `varlen_attn` says, sequence by sequence."""
    given = inspect.signature(varlen.varlen_attn).bind(*args, **named).arguments
    q, keys, values, first_rows = given["query"], given["key"], given["value"], given["cu_seq_q"].tolist()
    left, right = given["window_size"]
    assert (right, given["num_splits"], given["cu_seq_k"]) == (0, 1, None), "causal, and not split"
    assert keys.stride(-1) == values.stride(-1) == 1, "FlashAttention copies what is not in rows"
    assert {given[name].dtype for name in ("cu_seq_q", "seqused_k", "block_table")} == {torch.int32}
    assert (given["max_q"], given["max_k"]) == (max(torch.tensor(first_rows).diff()), max(given["seqused_k"]))
    out = torch.empty(q.shape, dtype=q.dtype)
    for i, length in enumerate(given["seqused_k"].tolist()):
        rows = slice(first_rows[i], first_rows[i + 1])
        k, v = (part[given["block_table"][i]].flatten(0, 1)[:length].float() for part in (keys, values))
        shared = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        scores = torch.einsum("qhd,khd->hqk", q[rows].float(), k) * given["scale"]
        query, key = torch.arange(length)[-(rows.stop - rows.start) :, None], torch.arange(length)
        hidden = (key > query) | (key < query - left) if left >= 0 else key > query
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[rows] = torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
    return out


def rows_of_cache(blocks: int, groups: int, head_dim: int) -> LayerCache:
    keys, values = torch.randn(2, blocks, groups, 16, head_dim).to(HALF)
    return LayerCache(keys.transpose(2, 3), values)


@pytest.mark.parametrize("window", [None, 1, 20])
def test_attention_is_what_the_library_is_asked_for(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """The chunks' order is not that of their rows, nor the blocks' that of the positions."""
    calls: list[None] = []
    monkeypatch.setattr(libraries, "varlen_attn", lambda *args, **named: calls.append(None) or plainly(*args, **named))
    held, shape = rows_of_cache(9, 2, 24), AttentionShape(0.2, window, None)
    tables = [torch.tensor(blocks) for blocks in ([7, 0, 4], [3], [8, 1])]
    spans = [Span(1, 5, 31, tables[0]), Span(0, 1, 0, tables[1]), Span(5, 22, 0, tables[2])]
    q_THd = torch.randn(22, 10, 24).to(HALF)[:, 2:8]
    actual = LibraryKernels(CPU, HALF, "FA3").attention(q_THd, held, spans, shape)
    expected = Kernels(CPU, HALF).attention(q_THd.contiguous(), held, spans, shape)
    assert calls
    assert (actual.float() - expected.float()).abs().max() <= 2e-3


def test_what_the_library_does_not_know_is_left_to_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "varlen_attn", None)
    fast, ours = LibraryKernels(CPU, HALF, "FA4"), TritonKernels(CPU, HALF)
    wide, scales = rows_of_cache(2, 1, 136), torch.rand(2, 2, 1, 16)
    integers = LayerCache(wide.keys.to(torch.int8), wide.values.to(torch.int8), scales)
    spans = [Span(0, 2, 3, torch.tensor([1, 0]))]
    for held, shape in ((wide, PLAIN), (integers, PLAIN), (rows_of_cache(2, 1, 16), AttentionShape(0.25, None, 9.0))):
        q_THd = torch.randn(2, 2, held.values.shape[3]).to(HALF)
        assert torch.equal(fast.attention(q_THd, held, spans, shape), ours.attention(q_THd, held, spans, shape))


def test_attention_on_a_card_has_the_shape_of_its_queries() -> None:
    with FakeTensorMode():
        keys, values = (torch.empty(4, 2, 16, 64, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
        q_THd = torch.empty(3, 8, 64, device=CUDA, dtype=torch.bfloat16)
        spans = [Span(0, 3, 17, torch.empty(2, device=CUDA, dtype=torch.int64))]
        kernels = LibraryKernels(CUDA, torch.bfloat16, "FA3")
        out = kernels.attention(q_THd, LayerCache(keys.transpose(2, 3), values), spans, PLAIN)
        assert (out.shape, out.dtype, out.device) == (q_THd.shape, q_THd.dtype, CUDA)


@pytest.mark.parametrize("form", ["F32", "Q4_0", "Q8_0"])
def test_products(make_weight: Any, form: str) -> None:
    fast, ours, plain = (
        LibraryKernels(CPU, torch.float32, None), TritonKernels(CPU, torch.float32), Kernels(CPU, torch.float32)
    )  # fmt: skip
    weight: Weight = make_weight(form, 40, 96)
    x_TD, bias = torch.randn(fast.many_rows, 96), torch.randn(40)
    prepared = fast.prepare(weight)
    assert torch.equal(fast.linear(x_TD, prepared, bias), plain.linear(x_TD, plain.prepare(weight), bias))
    few = ours if form != "F32" else plain
    assert torch.equal(fast.linear(x_TD[:2], prepared, bias), few.linear(x_TD[:2], prepared, bias))


def float8_weight(form: str) -> Weight:
    scale_of = {"rows": (1, 64), "matrix": None, "blocks": (16, 32)}[form]
    layout = Float8Layout("weight_scale", (16, 32) if form == "blocks" else None, True, None)
    return Float8Matrix.build(layout, quantizers.floats(scale_of)(torch.randn(48, 64))[0])


@pytest.mark.parametrize("form", ["rows", "matrix"])
@pytest.mark.parametrize("scale", [None, 0.01])
def test_products_of_floats_of_8_bits(form: str, scale: float | None) -> None:
    """cuBLAS rounds the result to bf16; torch has the same on a CPU."""
    fast, plain = LibraryKernels(CPU, torch.float32, None, has_float8=True), Kernels(CPU, torch.float32)
    weight, rounding = float8_weight(form), Rounding(torch.float8_e4m3fn, scale=scale)
    x_TD, bias = torch.randn(5, 64), torch.randn(48)
    actual = fast.linear_of_rounded(x_TD, rounding, fast.prepare(weight), bias)
    expected = plain.linear_of_rounded(x_TD, rounding, plain.prepare(weight), bias)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert (actual - expected).abs().max() <= 2**-8 * expected.abs().max()


@pytest.mark.parametrize(
    ("form", "rounding"),
    [
        ("blocks", Rounding(torch.float8_e4m3fn)),
        ("rows", Rounding(torch.float8_e4m3fn, group=32)),
        ("rows", Rounding(torch.int8)),
    ],
)
def test_what_cublas_does_not_multiply_is_left_to_triton(
    form: str, rounding: Rounding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch, "_scaled_mm")
    fast, ours = LibraryKernels(CPU, torch.float32, None, has_float8=True), TritonKernels(CPU, torch.float32)
    x_TD, weight = torch.randn(2, 64), float8_weight(form)
    actual = fast.linear_of_rounded(x_TD, rounding, fast.prepare(weight))
    assert torch.equal(actual, ours.linear_of_rounded(x_TD, rounding, ours.prepare(weight)))


def test_flash_attention_is_that_of_the_card_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert activate_flash((9, 0)) is None, "it is not installed here"
    activated: list[str] = []
    monkeypatch.setattr(libraries, "activate_flash_attention_impl", activated.append)
    found = [activate_flash(capability) for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))]
    assert found == [None, None, "FA3", "FA4", None]
    assert activated == ["FA3", "FA4"]


def test_less_than_exact_is_only_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(libraries, "activate_flash_attention_impl", lambda name: None)
    exact = select(CUDA, torch.bfloat16)
    assert (type(exact), exact.is_exact) == (TritonKernels, True)
    fast = select(CUDA, torch.bfloat16, exact=False)
    assert (type(fast), fast.is_exact, fast.name) == (LibraryKernels, False, f"cublas+FA3+float8+{exact.name}")
    with pytest.raises(ValueError, match="no-exact needs a CUDA device"):
        select(CPU, torch.float32, exact=False)


def test_lengths_that_a_graph_would_keep_are_not_recorded() -> None:
    def forward(inputs: tuple[Tensor, ...], spans: list[Span]) -> Tensor:
        raise AssertionError("it was computed")

    assert LibraryKernels(CPU, HALF, "FA3").record(forward, forward, 8, 64) is None
