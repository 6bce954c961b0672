"""Whatever is drafted, a step chooses the tokens and logprobs that steps of one token choose.

Bits are compared on the C++ kernels, whose rows do not depend on their number; torch's promise no more than tokens.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.batch import Batch, Chunk, Sample, Sampling
from model.config import ModelConfig
from model.kernels import Kernels, cpu
from model.kv_cache import KVCache
from model.runner import Runner
from model.sampling import choose_run as choose_knowing
from model.transformer import Transformer
from model.weights import Weights

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    family="tiny",
    vocab_size=96,
    dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=96,
    context_length=64,
)
PROMPT = [5, 17, 3, 60, 5, 17, 3]
LENGTH = 24
BLOCKS = [3, 0, 6]
Drafts = Callable[[list[int], int], tuple[int, ...]]


def runner_on(kernels: Kernels) -> Runner:
    draw = torch.Generator().manual_seed(4)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=draw) * columns**-0.5 * 1.5

    tensors = {"embedding.weight": matrix(96, 64), "head.weight": matrix(96, 64), "norm.weight": torch.ones(64)}
    for layer in ("layers.0", "layers.1"):
        tensors |= {f"{layer}.attention.{name}.weight": matrix(64 if name == "q" else 32, 64) for name in "qkv"}
        tensors |= {f"{layer}.attention.out.weight": matrix(64, 64), f"{layer}.mlp.down.weight": matrix(64, 96)}
        tensors |= {f"{layer}.mlp.{name}.weight": matrix(96, 64) for name in ("gate", "up")}
        tensors |= {f"{layer}.{name}.weight": torch.ones(64) for name in ("attention_norm", "mlp_norm")}
    transformer = Transformer(CONFIG, Weights(tensors, {}), kernels)
    return Runner(transformer, KVCache(CONFIG, 8, torch.float32, CPU))


@pytest.fixture(scope="module")
def native() -> Runner:
    kernels = cpu.load()
    assert kernels is not None, "the package was installed without its kernels"
    return runner_on(kernels)


@pytest.fixture(scope="module")
def plain() -> Runner:
    return runner_on(Kernels(CPU, torch.float32))


def generate(runner: Runner, sampling: Sampling, draft: Drafts) -> tuple[list[Sample], int]:
    """LENGTH samples, and how many steps they took."""
    tokens, samples, start, steps = list(PROMPT), list[Sample](), 0, 0
    runner.cache.poison(BLOCKS)
    while len(samples) < LENGTH:
        drafts = draft(tokens, len(samples))
        chunk = Chunk(tokens, start, len(tokens), BLOCKS, len(PROMPT), sampling, drafts)
        (found,) = runner.run(Batch([chunk])).samples
        assert not isinstance(found, str), found
        assert 1 <= len(found) <= len(drafts) + 1
        samples += found
        tokens += [sample.token for sample in found]
        start, steps = len(tokens) - 1, steps + 1
    return samples[:LENGTH], steps


def none(tokens: list[int], done: int) -> tuple[int, ...]:
    return ()


def oracle(samples: list[Sample], wrong_every: int) -> Drafts:
    """Four drafts that come true, but for every so manieth token."""
    truth = [(s.token + (i % wrong_every == wrong_every - 1)) % 96 for i, s in enumerate(samples)]
    return lambda tokens, done: tuple(truth[done : done + 4])


SAMPLINGS = {
    "greedy": Sampling(temperature=0.0, top_logprobs=3),
    "seeded": Sampling(seed=3, top_logprobs=3),
    "truncated": Sampling(seed=4, temperature=0.8, top_p=0.9, top_k=20, min_p=0.02, top_logprobs=0),
    "penalised": Sampling(temperature=0.0, presence_penalty=0.7, frequency_penalty=0.9, top_logprobs=1),
    "repetition": Sampling(seed=5, repetition_penalty=1.5, top_logprobs=1),
    "biased": Sampling(seed=6, logit_bias={7: 4.0, 8: -100.0}, top_logprobs=1),
    "not yet ending": Sampling(seed=7, min_tokens=9, ending_ids=tuple(range(0, 96, 3)), top_logprobs=1),
}


@pytest.mark.parametrize("wrong_every", [1, 2, 3, 5, 99])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_drafts_change_neither_a_token_nor_a_bit_of_a_logprob(native: Runner, name: str, wrong_every: int) -> None:
    want, slow = generate(native, SAMPLINGS[name], none)
    got, fast = generate(native, SAMPLINGS[name], oracle(want, wrong_every))
    assert got == want
    assert fast == slow if wrong_every == 1 else fast < slow


@pytest.mark.parametrize("name", SAMPLINGS)
def test_tokens_are_the_same_on_the_reference_kernels(plain: Runner, name: str) -> None:
    want, _ = generate(plain, SAMPLINGS[name], none)
    got, _ = generate(plain, SAMPLINGS[name], oracle(want, 3))
    assert [sample.token for sample in got] == [sample.token for sample in want]


def choose_run(rows: Tensor, chunk: Chunk) -> list[Sample] | str:
    kernels = Kernels(CPU, torch.float32)
    return choose_knowing(rows, kernels.argmax(rows).tolist(), chunk, kernels)


def test_penalties_see_the_drafts_before_them() -> None:
    """Every row likes token 1 best, but the more often it has come, the less."""
    rows = torch.zeros(4, 8)
    rows[:, 1], rows[:, 2] = 5.0, 3.0
    chunk = Chunk([0], 0, 1, [0], 1, Sampling(temperature=0.0, frequency_penalty=1.5), (1, 1, 1))
    samples = choose_run(rows, chunk)
    assert not isinstance(samples, str)
    assert [sample.token for sample in samples] == [1, 1, 2]
    assert chunk.tokens == [0]


def test_a_later_rows_failure_is_left_to_its_own_step() -> None:
    rows = torch.zeros(3, 8)
    rows[:, 1], rows[1] = 5.0, math.nan
    chunk = Chunk([0], 0, 1, [0], 1, Sampling(temperature=0.0), (1, 1))
    assert choose_run(rows, chunk) == [Sample(1)]
    assert isinstance(choose_run(rows[1:2], replace(chunk, drafts=())), str)


def test_a_failure_behind_a_rejected_draft_does_not_show() -> None:
    rows = torch.zeros(2, 8)
    rows[0, 1], rows[1] = 5.0, math.nan
    assert choose_run(rows, Chunk([0], 0, 1, [0], 1, Sampling(temperature=0.0), (2,))) == [Sample(1)]


def test_neighbours_drafts_do_not_mix(native: Runner) -> None:
    sampling = SAMPLINGS["greedy"]
    first, second = generate(native, sampling, none)[0][:2]
    other = Chunk([9, 8, 7], 0, 3, [1], 3, sampling)
    native.run(Batch([Chunk(PROMPT, 0, len(PROMPT), BLOCKS, len(PROMPT), None)]))
    chunk = Chunk([*PROMPT, first.token], len(PROMPT), len(PROMPT) + 1, BLOCKS, len(PROMPT), sampling, (second.token,))
    (alone,) = native.run(Batch([other])).samples
    silent = replace(other, sampling=None, blocks=[2])
    together = native.run(Batch([silent, chunk, other])).samples
    assert together[0] == []
    assert (together[1][0], len(together[1])) == (second, 2)
    assert together[2] == alone
