"""Whether the bits of a row depend on its neighbours, its place or the run, for every operation of the Triton kernels.

By interpretation this shows sums whose order follows the batch. Programs that race with each other, and instructions
that a card chooses by the batch, show on a card alone (HEADRACE_TEST_DEVICE=cuda).
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import triton
from torch import Tensor

from model.kernels import Kernels
from model.kernels.drawing import Draw, Draws
from model.kernels.reference import AttentionShape, LayerCache, Span, Weight
from model.kernels.triton import TritonKernels
from model.kernels.triton.attention import SPLIT, TILE

IS_INTERPRETED = triton.knobs.runtime.interpret
DTYPES = [torch.float32, torch.float16] if IS_INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
REPEATS = 100
ROWS, BLOCK, GROUPS, HEAD_DIM = 71, 16, 2, 16
# Rows (first, count, position of the first): a prompt of more than a tile, and what sees several splits.
CHUNKS = [(0, TILE + 3, 0), (TILE + 3, 3, SPLIT - 1), (TILE + 6, 1, 300)]
WEIGHTS = ["F32", "Q4_0", "Q4_1", "Q8_0"]
Operation = Callable[[slice], Tensor]  # of these rows, what is computed of them together
MakeWeight = Callable[[str, int, int], Weight]


@pytest.fixture(params=DTYPES, ids=str)
def kernels(request: pytest.FixtureRequest, device: torch.device) -> TritonKernels:
    return TritonKernels(device, request.param)


def products(kernels: TritonKernels, make_weight: MakeWeight) -> dict[str, Operation]:
    """All rows, and 65 of them, are multiplied in the way for many."""
    kernels.many_rows = 65
    x_TD, ids, bias = torch.randn(ROWS, 96).to(kernels.dtype), torch.arange(ROWS) % 40, torch.randn(40)
    weights = {form: kernels.prepare(make_weight(form, 40, 96)) for form in WEIGHTS}
    chosen, stack = ids % 3, kernels.stack([kernels.prepare(make_weight("Q4_1", 40, 96)) for _ in range(4)])
    return {
        "linear_of_each": lambda rows: kernels.linear_of_each(x_TD[rows], chosen[rows], stack),
        **{f"linear {form}": lambda rows, w=w: kernels.linear(x_TD[rows], w) for form, w in weights.items()},
        "linear biased": lambda rows: kernels.linear(x_TD[rows], weights["Q4_1"], bias.to(kernels.dtype)),
        "embed": lambda rows: kernels.embed(ids[rows], weights["Q4_1"]),
    }


def row_by_row(kernels: TritonKernels) -> dict[str, Operation]:
    x_TD, weight, bias = torch.randn(ROWS, 100).to(kernels.dtype) * 3, torch.randn(100), torch.randn(100)
    logits, allowed = torch.randn(ROWS, 600), torch.rand(ROWS, 600) < 0.5
    kinds = [Draw(0.0)] * 6 + [Draw(1.0, top_p=0.9, top_k=40), Draw(1.0), Draw(1.0, top_p=0.5)]
    how = [replace(kinds[row % len(kinds)], position=row) for row in range(ROWS)]
    return {
        "rms_norm": lambda rows: kernels.rms_norm(x_TD[rows], weight, 1e-5),
        "layer_norm": lambda rows: kernels.layer_norm(x_TD[rows], weight, bias, 1e-5),
        "add_rms_norm": lambda rows: torch.cat(kernels.add_rms_norm(x_TD[rows], x_TD[rows] / 3, weight, 1e-5), dim=-1),
        "activate": lambda rows: kernels.activate(x_TD[rows], "gelu"),
        "gate": lambda rows: kernels.gate(x_TD[rows], "silu"),
        "argmax": lambda rows: kernels.argmax(logits[rows]),
        "draw": lambda rows: kernels.draw(logits[rows], Draws.of(how[rows], kernels.device), allowed[rows]),
    }


def over_the_cache(kernels: TritonKernels) -> dict[str, Operation]:
    k_TGd, v_TGd = torch.randn(2, ROWS, GROUPS, HEAD_DIM).to(kernels.dtype)
    slots, held = torch.randperm(8 * BLOCK)[:ROWS], cache(kernels, 200)
    tables = [torch.randperm(200)[: -(-(start + count) // BLOCK)] for _, count, start in CHUNKS]
    q_THd, angles = torch.randn(ROWS, 2 * GROUPS, HEAD_DIM).to(kernels.dtype), torch.rand(ROWS, HEAD_DIM // 2)

    def rotate_and_store(rows: slice) -> Tensor:
        target, turns = cache(kernels, 8), (angles[rows].cos(), angles[rows].sin())
        rotated = kernels.rotate_and_store(q_THd[rows], k_TGd[rows], v_TGd[rows], turns, target, slots[rows])
        blocks, offsets = slots[rows] // BLOCK, slots[rows] % BLOCK
        return torch.cat([rotated, target.keys[blocks, :, :, offsets], target.values[blocks, :, offsets]], dim=1)

    def attention(window: int | None) -> Operation:
        shape = AttentionShape(0.25, window, None)
        return lambda rows: kernels.attention(q_THd[rows], held, spans_of(rows, tables), shape)

    return {"rotate_and_store": rotate_and_store, "attention": attention(None), "attention, windowed": attention(50)}


def cache(kernels: Kernels, blocks: int) -> LayerCache:
    keys, values = torch.randn(2, blocks, GROUPS, HEAD_DIM * BLOCK).to(kernels.dtype)
    return LayerCache(keys.unflatten(2, (HEAD_DIM, BLOCK)), values.unflatten(2, (BLOCK, HEAD_DIM)))


def spans_of(rows: slice, tables: list[Tensor]) -> list[Span]:
    """The parts of the chunks that lie within `rows`."""
    spans = []
    for (first, count, start), table in zip(CHUNKS, tables, strict=True):
        begin, end = max(first, rows.start), min(first + count, rows.stop)
        if begin < end:
            spans.append(Span(begin - rows.start, end - rows.start, start + begin - first, table))
    return spans


def all_operations(kernels: TritonKernels, make_weight: MakeWeight) -> dict[str, Operation]:
    return products(kernels, make_weight) | row_by_row(kernels) | over_the_cache(kernels)


def test_every_override_is_here(kernels: TritonKernels, make_weight: MakeWeight) -> None:
    overridden = {name for name in vars(TritonKernels) if name in vars(Kernels) and not name.startswith("_")}
    of_no_rows = {"prepare", "prepared_bytes", "stack", "draw_one", "record", "attention_bytes"}
    assert {name.split()[0].rstrip(",") for name in all_operations(kernels, make_weight)} == overridden - of_no_rows


def test_a_row_is_the_same_in_any_company(kernels: TritonKernels, make_weight: MakeWeight) -> None:
    parts = [slice(i, i + 1) for i in (0, 15, 16, 63, 64, 67, 70)] + [slice(5, 70), slice(63, 66), slice(66, 71)]
    for name, operation in all_operations(kernels, make_weight).items():
        together = operation(slice(0, ROWS))
        for rows in parts:
            assert torch.equal(operation(rows), together[rows]), f"{name}, rows {rows.start} to {rows.stop}"


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter runs programs one after the other, always in one order")
def test_a_row_is_the_same_every_time(kernels: TritonKernels, make_weight: MakeWeight) -> None:
    for name, operation in all_operations(kernels, make_weight).items():
        first = operation(slice(0, ROWS))
        for number in range(2, REPEATS + 1):
            assert torch.equal(operation(slice(0, ROWS)), first), f"{name}, run {number}"
