"""Attention through block tables is attention over the whole context, in torch's own form."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.kernels import Kernels
from model.kernels.reference import AttentionShape, LayerCache, Span
from model.kv_cache import BLOCK_SIZE, KVCache, block_bytes

# Shapes: T rows of the step, H query heads, G KV heads, d head size

HEADS, SIZE = 4, 8
CPU = torch.device("cpu")
PLAIN = AttentionShape(scale=0.4, window=None, softcap=None)
FAR_BLOCKS = [11, 3, 0, 7]  # of a sequence, in the order of its positions


@pytest.fixture(params=[1, 2, 4])
def groups(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def config(groups: int) -> ModelConfig:
    sizes = {"dim": HEADS * SIZE, "num_layers": 1, "num_heads": HEADS, "num_kv_heads": groups, "head_dim": SIZE}
    return ModelConfig(family="test", vocab_size=1, hidden_dim=1, context_length=64, **sizes)


def poisoned_cache(groups: int) -> LayerCache:
    cache = KVCache(config(groups), 12, torch.float32, CPU)
    cache.poison(list(range(12)))
    return cache.layers[0]


def random_qkv(length: int, groups: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(length, heads, SIZE, generator=draw) for heads in (HEADS, groups, groups))
    return q, k, v


def slots(blocks: list[int], start: int, stop: int) -> Tensor:
    return torch.tensor([blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(start, stop)])


def paged(q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor, shape: AttentionShape, cuts: list[int]) -> Tensor:
    """Stores and attends chunk by chunk."""
    kernels, cache = Kernels(CPU, torch.float32), poisoned_cache(k_TGd.shape[1])
    parts = []
    for start, stop in pairwise([0, *cuts, len(q_THd)]):
        kernels.store(k_TGd[start:stop], v_TGd[start:stop], cache, slots(FAR_BLOCKS, start, stop))
        span = Span(0, stop - start, start, torch.tensor(FAR_BLOCKS))
        parts.append(kernels.attention(q_THd[start:stop].contiguous(), cache, [span], shape))
    return torch.cat(parts)


def naive(q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor, shape: AttentionShape) -> Tensor:
    """Row by row and head by head, from the definition."""
    out_THd = torch.empty_like(q_THd)
    for position in range(len(q_THd)):
        first = 0 if shape.window is None else max(0, position - shape.window + 1)
        for head in range(HEADS):
            group = head * k_TGd.shape[1] // HEADS
            scores = k_TGd[first : position + 1, group] @ q_THd[position, head] * shape.scale
            if shape.softcap is not None:
                scores = shape.softcap * torch.tanh(scores / shape.softcap)
            out_THd[position, head] = torch.softmax(scores, 0) @ v_TGd[first : position + 1, group]
    return out_THd


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 50])
@pytest.mark.parametrize("window", [None, 1, 15, 16, 17])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_paged_attention_is_the_definition(length: int, window: int | None, softcap: float | None, groups: int) -> None:
    shape, (q, k, v) = replace(PLAIN, window=window, softcap=softcap), random_qkv(length, groups)
    want = naive(q, k, v, shape)
    for cuts in ([], [1, 15, 16, 17, 33], list(range(1, length))):
        found = paged(q, k, v, shape, [cut for cut in cuts if cut < length])
        assert torch.allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("length", [16, 17, 50])
def test_paged_attention_is_scaled_dot_product_attention_of_torch(length: int, groups: int) -> None:
    q, k, v = random_qkv(length, groups)
    sides = [x.transpose(0, 1)[None] for x in (q, k, v)]
    want = F.scaled_dot_product_attention(*sides, is_causal=True, scale=PLAIN.scale, enable_gqa=True)
    assert torch.allclose(
        paged(q, k, v, PLAIN, [15, 16, 17] if length == 50 else []), want[0].transpose(0, 1), atol=1e-5
    )


def test_sequences_of_one_step_see_only_their_own_blocks(groups: int) -> None:
    kernels, cache = Kernels(CPU, torch.float32), poisoned_cache(groups)
    tables, lengths = [[5, 2], [9], [4, 8, 1]], [17, 3, 40]
    rows = [random_qkv(length, groups, seed) for seed, length in enumerate(lengths)]
    q, k, v = (torch.cat(parts) for parts in zip(*rows, strict=True))
    places = [slots(table, 0, length) for table, length in zip(tables, lengths, strict=True)]
    kernels.store(k, v, cache, torch.cat(places))
    ends = [0, 17, 20, 60]
    spans = [Span(a, b, 0, torch.tensor(table)) for (a, b), table in zip(pairwise(ends), tables, strict=True)]
    together = kernels.attention(q, cache, spans, PLAIN)
    for span, row in zip(spans, rows, strict=True):
        assert torch.allclose(together[span.first_row : span.last_row], naive(*row, PLAIN), atol=1e-5)


def test_a_wrong_block_table_shows() -> None:
    q, k, v = random_qkv(40, 2)
    kernels, cache = Kernels(CPU, torch.float32), poisoned_cache(2)
    kernels.store(k, v, cache, slots(FAR_BLOCKS, 0, 40))
    swapped = Span(0, 40, 0, torch.tensor([FAR_BLOCKS[1], FAR_BLOCKS[0], FAR_BLOCKS[2]]))
    assert not torch.allclose(kernels.attention(q, cache, [swapped], PLAIN), naive(q, k, v, PLAIN), atol=1e-3)
    unwritten = Span(0, 40, 0, torch.tensor([FAR_BLOCKS[0], 6, FAR_BLOCKS[2]]))
    assert kernels.attention(q, cache, [unwritten], PLAIN).isnan().any(), "a poisoned block was read unnoticed"


def test_a_window_forgets_the_blocks_before_it() -> None:
    """Blocks that no later row can see may be anything."""
    q, k, v = random_qkv(50, 2)
    kernels, cache = Kernels(CPU, torch.float32), poisoned_cache(2)
    kernels.store(k[30:], v[30:], cache, slots(FAR_BLOCKS, 30, 50))
    shape = replace(PLAIN, window=9)
    span = Span(0, 1, 49, torch.tensor(FAR_BLOCKS))
    last = kernels.attention(q[49:].contiguous(), cache, [span], shape)
    assert torch.allclose(last, naive(q, k, v, shape)[49:], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int16, torch.int8, torch.float8_e4m3fn])
def test_a_block_takes_what_the_plan_counts(dtype: torch.dtype) -> None:
    features = config(2)
    cache = KVCache(features, 3, dtype, CPU)  # and one for nobody
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values, layer.scales)]
    assert sum(tensor.nbytes for tensor in tensors if tensor is not None) == 4 * block_bytes(features, dtype)
