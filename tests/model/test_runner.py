"""A batch's chunks do not see each other: neither their order, nor their company, nor a neighbour's failure shows."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.batch import Batch, Chunk, Sample, Sampling
from model.config import ModelConfig
from model.kernels import Kernels
from model.kv_cache import KVCache
from model.runner import Runner
from model.transformer import Transformer
from model.weights import Weights

CPU = torch.device("cpu")
CURSED = 95  # a token whose embedding is NaN
CONFIG = ModelConfig(
    family="tiny",
    vocab_size=96,
    dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    hidden_dim=48,
    context_length=64,
)


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(6)
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (96, 32), "head.weight": (96, 32), "norm.weight": (32,)}
    for layer in ("layers.0", "layers.1"):
        shapes |= {f"{layer}.attention.{name}.weight": (32 if name == "q" else 16, 32) for name in "qkv"}
        shapes |= {f"{layer}.mlp.{name}.weight": (48, 32) for name in ("gate", "up")}
        shapes |= {f"{layer}.attention.out.weight": (32, 32), f"{layer}.mlp.down.weight": (32, 48)}
        shapes |= {f"{layer}.attention_norm.weight": (32,), f"{layer}.mlp_norm.weight": (32,)}
    made = {name: torch.randn(shape, generator=draw) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    made |= {name: tensor.abs() * 4 + 0.5 for name, tensor in made.items() if tensor.dim() == 1}
    made["embedding.weight"][CURSED] = math.nan
    return made


@pytest.fixture
def runner() -> Runner:
    weights = Weights(tensors(), {})
    transformer = Transformer(CONFIG, weights, Kernels(CPU, torch.float32))
    weights.finish()
    return Runner(transformer, KVCache(CONFIG, 16, torch.float32, CPU))


def prompt(length: int, blocks: list[int], **sampling: Any) -> Chunk:
    tokens = [(7 * length + 5 * i) % CURSED for i in range(length)]
    return Chunk(tokens, 0, length, blocks, length, Sampling(seed=length, **sampling))


CHUNKS = [
    prompt(5, [3], temperature=0.0),
    prompt(20, [8, 1], top_logprobs=3),
    prompt(16, [5], temperature=2.0, top_k=20),
    prompt(33, [0, 9, 4], top_p=0.9, top_logprobs=0),
]


def test_the_order_of_a_batch_has_no_meaning(runner: Runner) -> None:
    alone = [runner.run(Batch([chunk])).samples[0] for chunk in CHUNKS]
    for order in itertools.permutations(range(4)):
        together = runner.run(Batch([CHUNKS[i] for i in order])).samples
        assert [tokens_of(sample) for sample in together] == [tokens_of(alone[i]) for i in order]


def tokens_of(samples: list[Sample] | str) -> list[int]:
    assert not isinstance(samples, str), samples
    return [sample.token for sample in samples]


def test_a_row_that_is_not_finite_fails_alone(runner: Runner) -> None:
    cursed = replace(CHUNKS[0], tokens=[1, CURSED, 2, 3, 4], blocks=[12])
    calm = runner.run(Batch(CHUNKS)).samples
    disturbed = runner.run(Batch([*CHUNKS[:2], cursed, *CHUNKS[2:]])).samples
    assert disturbed[2] == "the model computed logits that are not finite"
    assert [tokens_of(s) for i, s in enumerate(disturbed) if i != 2] == [tokens_of(s) for s in calm]


def test_only_chunks_that_ask_get_a_sample(runner: Runner) -> None:
    silent = replace(CHUNKS[1], sampling=None)
    first, nothing, last = runner.run(Batch([CHUNKS[0], silent, CHUNKS[2]])).samples
    assert nothing == []
    assert [tokens_of(first), tokens_of(last)] == [tokens_of(s) for s in runner.run(Batch(CHUNKS)).samples[::2]]


def test_a_batch_without_a_sample_still_fills_the_cache(runner: Runner) -> None:
    whole = CHUNKS[3]
    want = tokens_of(runner.run(Batch([whole])).samples[0])
    runner.cache.poison(whole.blocks)
    assert runner.run(Batch([replace(whole, stop=17, sampling=None)])).samples == [[]]
    assert tokens_of(runner.run(Batch([replace(whole, start=17)])).samples[0]) == want


def test_a_block_that_was_freed_shows_when_it_is_read(runner: Runner) -> None:
    whole = CHUNKS[3]
    runner.run(Batch([whole]))
    runner.cache.poison(whole.blocks[:1])
    assert isinstance(runner.run(Batch([replace(whole, start=17)])).samples[0], str)


def test_generation_step_by_step_is_generation_from_scratch(runner: Runner) -> None:
    sampling = Sampling(seed=11, repetition_penalty=1.2, presence_penalty=0.3)
    tokens = list(CHUNKS[1].tokens)
    for length in range(20, 40):
        start = 0 if length == 20 else length - 1
        (sample,) = runner.run(Batch([Chunk(tokens, start, length, [8, 1, 13], 20, sampling)])).samples
        (again,) = runner.run(Batch([Chunk(tokens, 0, length, [2, 6, 7], 20, sampling)])).samples
        assert tokens_of(sample) == tokens_of(again)
        tokens += tokens_of(sample)


@pytest.mark.parametrize("step_tokens", [1, 16, 200, 100_000])
def test_warming_up_stays_within_the_cache(runner: Runner, step_tokens: int) -> None:
    runner.warm_up(step_tokens)
