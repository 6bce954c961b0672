"""Whether a row's bits depend on anything but the row: on its neighbours, its place, its chunking, the threads."""

from collections.abc import Callable, Iterator

import pytest
import torch

from model.kernels.cpu import CpuKernels
from model.kernels.reference import AttentionShape, LayerCache, Span, Weight

MakeWeight = Callable[[str, int, int], Weight]
SIZES = range(1, 131)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest, kernels: CpuKernels) -> Iterator[int]:
    kernels.native.set_threads(request.param)
    yield request.param
    kernels.native.set_threads(2)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("activations", ["int16", "int8"])
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "F32", "BF16"])
def test_a_product_row_is_the_same_in_any_batch(
    kernels: CpuKernels, make_weight: MakeWeight, name: str, activations: str
) -> None:
    kernels = CpuKernels(kernels.native, kernels.level, kernels.operations, activations)
    weight, bias = kernels.prepare(make_weight(name, 50, 256)), torch.randn(50)
    x_TD = torch.randn(max(SIZES), 256)
    kernels.native.set_threads(1)
    alone = torch.cat([kernels.linear(x_TD[i : i + 1], weight, bias) for i in range(len(x_TD))])
    kernels.native.set_threads(2)
    for size in SIZES:
        first = size * 7 % (len(x_TD) - size + 1)  # another place in the batch each time
        rows = slice(first, first + size)
        assert torch.equal(kernels.linear(x_TD[rows], weight, bias), alone[rows])


@pytest.mark.usefixtures("threads")
def test_what_acts_on_rows_is_the_same_in_any_batch(kernels: CpuKernels) -> None:
    x_TD, weight, bias = torch.randn(max(SIZES), 166), torch.randn(166), torch.randn(166)
    angles = torch.rand(len(x_TD), 41)
    operations: list[Callable[[slice], torch.Tensor]] = [
        lambda rows: kernels.rms_norm(x_TD[rows], weight, 1e-5),
        lambda rows: kernels.layer_norm(x_TD[rows], weight, bias, 1e-5),
        lambda rows: kernels.rotate(x_TD[rows, :164].unflatten(1, (2, 82)), angles[rows], angles[rows] + 1),
        lambda rows: kernels.gate(x_TD[rows], "silu"),
        lambda rows: kernels.activate(x_TD[rows], "gelu_tanh"),
    ]
    for operation in operations:
        alone = torch.cat([operation(slice(i, i + 1)) for i in range(len(x_TD))])
        for size in SIZES:
            rows = slice(len(x_TD) - size, len(x_TD))
            assert torch.equal(operation(rows), alone[rows])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("dtype", "window", "softcap"),
    [
        (torch.float32, None, None),
        (torch.float32, 100, None),
        (torch.float32, None, 20.0),
        (torch.float16, 100, 20.0),
        (torch.int16, None, 20.0),
        (torch.int8, 100, None),
    ],
)
def test_attention_is_the_same_however_the_context_was_chunked(
    kernels: CpuKernels, dtype: torch.dtype, window: int | None, softcap: float | None
) -> None:
    length, shape = 540, AttentionShape(0.125, window, softcap)
    cache, blocks = _filled(kernels, length, dtype)
    q_THd = torch.randn(length, 6, 64) * 3
    alone = torch.cat(
        [kernels.attention(q_THd[i : i + 1], cache, [Span(0, 1, i, blocks)], shape) for i in range(length)]
    )
    for size in (2, 3, 16, 17, 130, 256, 539, length):
        spans = [Span(i, min(i + size, length), i, blocks) for i in range(0, length, size)]
        assert torch.equal(kernels.attention(q_THd, cache, spans, shape), alone)


def _filled(kernels: CpuKernels, length: int, dtype: torch.dtype) -> tuple[LayerCache, torch.Tensor]:
    num_blocks = -(-length // 16)
    keys, values = torch.zeros(num_blocks, 2, 64, 16, dtype=dtype), torch.zeros(num_blocks, 2, 16, 64, dtype=dtype)
    cache = LayerCache(keys, values, None if dtype.is_floating_point else torch.zeros(2, num_blocks, 2, 16))
    slots = torch.arange(length)
    kernels.store(torch.randn(length, 2, 64), torch.randn(length, 2, 64), cache, slots)
    return cache, torch.arange(num_blocks)
