"""Draws follow the distribution that the request asked for, and depend on its seed and position alone."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from model.batch import Chunk, DeadEnd, Sample, Sampling
from model.kernels import Kernels, drawing
from model.kernels.drawing import weights
from model.kernels.philox import uniform
from model.sampling import _adjust, draw_of
from model.sampling import choose as choose_knowing

DRAWS = 20_000
KERNELS = Kernels(torch.device("cpu"), torch.float32)
LOGITS = torch.tensor([1.2, -0.7, 2.1, 0.4, 2.1, -1.9, 0.9, 1.6])


def choose(logits: Tensor, chunk: Chunk) -> Sample | str:
    (best,) = KERNELS.argmax(logits[None]).tolist()
    return choose_knowing(logits, best, chunk, None, KERNELS)


def chunk(sampling: Sampling, prompt: Sequence[int] = (), output: Sequence[int] = (), stop: int | None = None) -> Chunk:
    """A chunk that chooses the token after prompt and output; `stop` puts it at a position without naming tokens."""
    tokens = [*prompt, *output]
    return Chunk(tokens, 0, len(tokens) if stop is None else stop, [], len(prompt), sampling)


def token(logits: Tensor, sampling: Sampling, stop: int | None = None, **context: Any) -> int:
    sample = choose(logits, chunk(sampling, stop=stop, **context))
    assert isinstance(sample, Sample), sample
    return sample.token


def candidates(logits: Tensor, sampling: Sampling) -> Tensor:
    return drawing.candidates(logits, draw_of(sampling, 0))


def distribution(logits: Tensor, sampling: Sampling) -> np.ndarray:
    """Temperature, then top-k, top-p and min-p, each of what the one before left: by sorting everything."""
    values = logits.double().numpy()
    likelihoods = np.exp((values - values.max()) / sampling.temperature)
    likeliest = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if sampling.top_k:
        likeliest = likeliest[: sampling.top_k]
    if sampling.top_p < 1.0:
        target, reached = likelihoods[likeliest].sum() * sampling.top_p, np.cumsum(likelihoods[likeliest])
        likeliest = likeliest[: next((i for i, sum_ in enumerate(reached, 1) if sum_ >= target), len(likeliest))]
    likeliest = [i for i in likeliest if likelihoods[i] >= sampling.min_p * likelihoods[likeliest[0]]]
    kept = np.zeros_like(likelihoods)
    kept[likeliest] = likelihoods[likeliest]
    return kept / kept.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.5),
        Sampling(temperature=1.0),
        Sampling(temperature=2.0),
        Sampling(temperature=1.0, top_k=3),
        Sampling(temperature=2.0, top_p=0.7),
        Sampling(temperature=0.5, min_p=0.2),
        Sampling(temperature=0.5, top_k=6, top_p=0.99),
        Sampling(temperature=2.0, top_k=7, min_p=0.3),
        Sampling(temperature=1.0, top_p=0.9, min_p=0.2),
        Sampling(temperature=1.0, top_k=6, top_p=0.95, min_p=0.3),
    ],
    ids=lambda sampling: f"T{sampling.temperature} k{sampling.top_k} p{sampling.top_p} min{sampling.min_p}",
)
def test_draws_follow_the_known_distribution(sampling: Sampling, uniforms: Tensor) -> None:
    """`choose` is slow in a loop: some of its draws prove a form for many at once, whose draws are then counted."""
    ids = candidates(LOGITS, sampling)
    cumulative = weights(LOGITS[ids], sampling.temperature).cumsum(0)
    drawn = ids[torch.searchsorted(cumulative, uniforms * cumulative[-1], right=True)]
    assert [token(LOGITS, sampling, stop=position) for position in range(500)] == drawn[:500].tolist()

    want, counts = distribution(LOGITS, sampling), np.bincount(drawn, minlength=len(LOGITS))
    assert (counts[want == 0] == 0).all(), "a token outside the mask was drawn"
    assert stats.chisquare(counts[want > 0], want[want > 0] * DRAWS).pvalue > 1e-3


@pytest.fixture(scope="module")
def uniforms() -> Tensor:
    """Of seed 0 and the first positions."""
    return torch.tensor([uniform(0, position) for position in range(DRAWS)], dtype=torch.float64)


def test_the_chi_square_test_would_notice_another_temperature() -> None:
    counts = distribution(LOGITS, Sampling(temperature=1.0)) * DRAWS
    assert stats.chisquare(counts, distribution(LOGITS, Sampling(temperature=1.1)) * DRAWS).pvalue < 1e-3


def shapes_of_distributions(size: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(size)
    random = torch.randn(size, generator=draw)
    return {
        "random": 3 * random,
        "nearly flat": 0.01 * random,
        "flat": torch.zeros(size),
        "peaked": 40 * random,
        "one peak in the plain": torch.where(torch.arange(size) == size // 2, 12.0, 0.0),
        "many ties": torch.round(random),
        "steps": (torch.arange(size) // 7).float() / 3,
    }


@pytest.mark.parametrize("size", [1, 2, 50, 3000])
@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.1, 0.5, 0.9, 0.999])
def test_the_nucleus_is_what_sorting_everything_finds(size: int, top_p: float) -> None:
    for shape, logits in shapes_of_distributions(size).items():
        for temperature, top_k in ((1.0, 0), (0.3, 0), (1.0, 40)):
            sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
            found = candidates(logits, sampling).tolist()
            assert found == np.flatnonzero(distribution(logits, sampling)).tolist(), (shape, temperature, top_k)


def test_the_nucleus_is_as_small_as_it_can_be() -> None:
    draw = torch.Generator().manual_seed(5)
    for _ in range(200):
        logits = 3 * torch.randn(30, generator=draw)
        top_p = float(torch.rand((), generator=draw))
        probabilities = torch.softmax(logits.double(), 0)
        kept = probabilities[candidates(logits, Sampling(top_p=top_p))]
        assert float(kept.sum()) >= top_p
        assert float(kept.sum() - kept.min()) < top_p


@torch.inference_mode()
def test_truncations_that_keep_everything_change_nothing() -> None:
    plain = [token(LOGITS, Sampling(), stop=position) for position in range(1, 300)]
    for same in ({"top_k": 8}, {"top_k": 1000}, {"top_p": 1.0}, {"min_p": 0.0}, {"repetition_penalty": 1.0}):
        assert [token(LOGITS, Sampling(**same), stop=position) for position in range(1, 300)] == plain


@pytest.mark.parametrize("logits", [LOGITS, torch.zeros(5), torch.tensor([-3.0]), 1e4 * LOGITS, -1e4 * LOGITS])
def test_every_way_to_take_the_likeliest_is_greedy(logits: Tensor) -> None:
    """Of equally likely tokens the first counts as likelier."""
    best = int(logits.argmax())
    ways = [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-9}, {"temperature": 1e-300, "top_k": 1}]
    for way, position in itertools.product(ways, range(1, 20)):
        assert token(logits, Sampling(**way), stop=position) == best, way


def test_a_tiny_temperature_draws_among_ties_only() -> None:
    drawn = {token(LOGITS, Sampling(temperature=1e-6), stop=position) for position in range(1, 100)}
    assert drawn == {2, 4}
    untied = LOGITS + 0.001 * torch.arange(8)
    assert {token(untied, Sampling(temperature=1e-6), stop=position) for position in range(1, 100)} == {4}


def test_top_k_counts_exactly_among_ties() -> None:
    assert candidates(torch.zeros(9), Sampling(top_k=4)).tolist() == [0, 1, 2, 3]
    assert candidates(LOGITS, Sampling(top_k=1)).tolist() == [2]
    assert candidates(LOGITS, Sampling(top_k=2)).tolist() == [2, 4]


def naive_adjustment(logits: list[float], prompt: list[int], output: list[int], sampling: Sampling) -> list[float]:
    found = list(logits)
    for i in range(len(found)):
        found[i] += sampling.logit_bias.get(i, 0.0)
        if i in prompt or i in output:
            penalty = sampling.repetition_penalty
            found[i] = found[i] / penalty if found[i] > 0 else found[i] * penalty
        found[i] -= sampling.frequency_penalty * output.count(i)
        found[i] -= sampling.presence_penalty if i in output else 0.0
    return found


def test_adjustments_are_the_naive_formulas() -> None:
    draw = np.random.default_rng(4)
    for _ in range(100):
        prompt, output = draw.integers(0, 12, 6).tolist(), draw.integers(0, 12, int(draw.integers(0, 9))).tolist()
        sampling = Sampling(
            repetition_penalty=float(draw.choice([1.0, 1.3, 0.7])),
            presence_penalty=float(draw.choice([0.0, 0.5, -1.0])),
            frequency_penalty=float(draw.choice([0.0, 0.25, -0.5])),
            logit_bias={int(i): float(draw.normal()) for i in draw.integers(0, 12, int(draw.integers(0, 4)))},
        )
        logits = torch.tensor(draw.normal(size=12), dtype=torch.float32)
        before = logits.clone()
        found = _adjust(logits, chunk(sampling, prompt, output), sampling)
        assert found.tolist() == pytest.approx(naive_adjustment(before.tolist(), prompt, output, sampling), abs=1e-5)
        assert torch.equal(logits, before), "the model's own logits were written to"


def test_only_what_is_computed_counts_as_output() -> None:
    """The list of tokens is the scheduler's own and may be longer than the chunk."""
    sampling = Sampling(presence_penalty=1.0, repetition_penalty=2.0)
    known = Chunk([0, 1, 2, 3], 0, 2, [], 1, sampling)
    assert torch.equal(_adjust(LOGITS, known, sampling), _adjust(LOGITS, chunk(sampling, [0], [1]), sampling))


def test_a_bias_forbids_and_forces() -> None:
    forbidden = Sampling(logit_bias={2: -100.0, 4: -100.0})
    forced = Sampling(logit_bias={5: 100.0})
    assert not {token(LOGITS, forbidden, stop=position) for position in range(1, 500)} & {2, 4}
    assert {token(LOGITS, forced, stop=position) for position in range(1, 500)} == {5}


def test_a_bias_on_all_tokens_changes_nothing() -> None:
    for position in range(1, 300):
        biased = Sampling(logit_bias=dict.fromkeys(range(8), 2.5), top_p=0.9)
        assert token(LOGITS, biased, stop=position) == token(LOGITS, Sampling(top_p=0.9), stop=position)


def test_ending_tokens_are_banned_until_there_are_enough() -> None:
    sampling = Sampling(temperature=0.0, min_tokens=3, ending_ids=(2, 4))
    assert [token(LOGITS, sampling, prompt=[1, 1, 1, 1], output=[0] * n) for n in range(5)] == [7, 7, 7, 2, 2]


def test_a_row_with_nothing_left_is_an_error_in_words() -> None:
    banned = Sampling(min_tokens=1, ending_ids=tuple(range(8)))
    assert choose(LOGITS, chunk(banned, [1])) == DeadEnd(
        "what the request allows and forbids leaves no token to choose"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_an_error_in_words(value: float) -> None:
    broken = LOGITS.clone()
    broken[3] = value
    for sampling in (Sampling(), Sampling(temperature=0.0), Sampling(top_k=1)):
        assert choose(broken, chunk(sampling, [1])) == "the model computed logits that are not finite"


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    places = [(seed, position) for seed in (0, 1, -5, 2**63 - 1) for position in range(1, 60)]
    once = {place: token(LOGITS, Sampling(seed=place[0]), stop=place[1]) for place in places}
    for seed, position in reversed(places):
        tokens = [7] * position  # what the sequence holds, and how much of it is prompt, has no say
        sampling = Sampling(seed=seed)
        sample = choose(LOGITS, Chunk(tokens, position - 1, position, [3], position // 2, sampling))
        assert isinstance(sample, Sample)
        assert sample.token == once[seed, position]
    columns = [[once[seed, position] for position in range(1, 60)] for seed in (0, 1, -5, 2**63 - 1)]
    assert len({tuple(column) for column in columns}) == 4


def logprobs(logits: Tensor, sampling: Sampling, **context: Any) -> Any:
    sample = choose(logits, chunk(sampling, **context))
    assert isinstance(sample, Sample)
    return sample.logprobs


def test_logprobs_are_the_models_own_distribution() -> None:
    draw = torch.Generator().manual_seed(8)
    for position in range(1, 50):
        logits = 4 * torch.randn(500, generator=draw)
        sample = choose(logits, chunk(Sampling(top_logprobs=500), stop=position))
        assert isinstance(sample, Sample)
        assert sample.logprobs is not None
        entries = dict(sample.logprobs.top)
        assert entries[sample.token] == sample.logprobs.chosen, "not bit-equal"
        assert sum(np.exp(value) for value in entries.values()) == pytest.approx(1.0, abs=1e-5)
        assert [value for _, value in sample.logprobs.top] == sorted(entries.values(), reverse=True)
        want = torch.log_softmax(logits.double(), 0)
        assert all(value == pytest.approx(float(want[i]), abs=1e-5) for i, value in entries.items())


def test_logprobs_do_not_know_of_penalties_and_truncation() -> None:
    plain = logprobs(LOGITS, Sampling(temperature=0.0, top_logprobs=8))
    changed = Sampling(temperature=0.3, top_k=1, top_p=0.5, min_p=0.5, logit_bias={2: 3.0}, top_logprobs=8)
    penalised = Sampling(temperature=0.0, presence_penalty=2.0, repetition_penalty=1.5, top_logprobs=8)
    assert logprobs(LOGITS, changed, prompt=[1], output=[2, 2]) == plain
    assert logprobs(LOGITS, penalised, prompt=[1], output=[2, 4]).top == plain.top


def test_logprobs_list_as_many_as_were_asked_for() -> None:
    assert logprobs(LOGITS, Sampling()) is None
    assert logprobs(LOGITS, Sampling(top_logprobs=0)).top == []
    assert [i for i, _ in logprobs(LOGITS, Sampling(top_logprobs=3)).top] == [2, 4, 7]
    assert len(logprobs(LOGITS, Sampling(top_logprobs=20)).top) == len(LOGITS)
