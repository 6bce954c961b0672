"""What may be chosen: against a naive count of what every rule leaves, for all rules together."""

import random

import pytest
import torch
from torch import Tensor

from model.batch import Chunk, DeadEnd, Sample, Sampling
from model.kernels import Kernels
from model.restriction import allowed
from model.sampling import choose, choose_run

KERNELS = Kernels(torch.device("cpu"), torch.float32)
VOCABULARY = 12
LOGITS = torch.tensor([0.3, 2.0, -1.0, 0.9, 1.8, 0.0, -0.2, 1.1, 0.6, -2.0, 1.4, 0.1])


def mask_of(tokens: set[int]) -> bytes:
    """With room for more tokens than there are, all of them allowed, as masks may have it."""
    bits = sum(1 << token for token in tokens) | (0xFFFFFFFF << VOCABULARY)
    return bits.to_bytes(8, "little")


def naive(sampling: Sampling, output: list[int], mask: set[int] | None) -> set[int]:
    left = set(range(VOCABULARY)) if mask is None else set(mask)
    if sampling.allowed_token_ids:
        left &= set(sampling.allowed_token_ids)
    for word in sampling.bad_words:
        if list(word[:-1]) == output[len(output) - len(word) + 1 :] or len(word) == 1:
            left.discard(word[-1])
    endings = set(sampling.last_resort_ids)
    if len(output) < sampling.min_tokens:
        endings |= set(sampling.ending_ids)
    return left if mask is not None and not left - endings else left - endings


def chunk(sampling: Sampling, output: list[int]) -> Chunk:
    tokens = [1, 2, 3, *output]
    return Chunk(tokens, 0, len(tokens), [], 3, sampling)


def some(draw: random.Random, most: int) -> list[int]:
    return draw.sample(range(VOCABULARY), draw.randint(0, most))


def any_sampling(draw: random.Random) -> Sampling:
    return Sampling(
        temperature=draw.choice([0.0, 1.0]),
        allowed_token_ids=tuple(some(draw, 8)) if draw.random() < 0.5 else (),
        bad_words=tuple(tuple(draw.choices(range(4), k=draw.randint(1, 3))) for _ in range(draw.randint(0, 5))),
        min_tokens=draw.choice([0, 3]),
        ending_ids=(1, 4),
        last_resort_ids=draw.choice([(), (7,)]),
        seed=draw.randrange(1000),
    )


def indices(allowed_V: Tensor | None) -> set[int]:
    return set(range(VOCABULARY)) if allowed_V is None else set(allowed_V.nonzero().flatten().tolist())


def test_every_rule_holds_beside_every_other_and_only_what_they_leave_is_chosen() -> None:
    draw = random.Random(3)
    ends = 0
    for _ in range(2000):
        sampling, output = any_sampling(draw), draw.choices(range(4), k=draw.randint(0, 5))
        mask = None if draw.random() < 0.5 else set(some(draw, VOCABULARY))
        left = naive(sampling, output, mask)
        bits = None if mask is None else mask_of(mask)
        assert indices(allowed(chunk(sampling, output), bits, like=LOGITS)) == left
        sample = choose(LOGITS, int(LOGITS.argmax()), chunk(sampling, output), bits, KERNELS)
        ends += not left
        if not left:
            assert isinstance(sample, DeadEnd)
            continue
        assert isinstance(sample, Sample)
        assert sample.token in left
        if sampling.temperature == 0:
            assert sample.token == max(left, key=lambda token: float(LOGITS[token]))
    assert 20 < ends < 1000


def test_where_nothing_is_asked_for_nothing_is_computed() -> None:
    sampling = Sampling(min_tokens=2, ending_ids=(1,), bad_words=((5, 6),))
    assert allowed(chunk(sampling, [0, 0]), None, like=LOGITS) is None
    assert allowed(chunk(Sampling(), []), None, like=LOGITS) is None


def test_a_word_is_looked_for_in_the_output_only() -> None:
    sampling = Sampling(temperature=0.0, bad_words=((3, 1),))
    assert indices(allowed(chunk(sampling, []), None, like=LOGITS)) == set(range(VOCABULARY)), "the prompt ends with 3"
    assert 1 not in indices(allowed(chunk(sampling, [3]), None, like=LOGITS))


def test_a_mask_without_bytes_allows_nothing() -> None:
    assert isinstance(choose(LOGITS, 1, chunk(Sampling(), []), b"", KERNELS), DeadEnd)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_those_of_the_model_whatever_is_allowed(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, top_logprobs=2)
    sample = choose(LOGITS, 1, chunk(sampling, []), mask_of({9}), KERNELS)
    assert isinstance(sample, Sample)
    assert sample.token == 9
    assert sample.logprobs is not None
    assert sample.logprobs.chosen == float(torch.log_softmax(LOGITS, -1)[9])
    assert [token for token, _ in sample.logprobs.top] == [1, 4]


def test_each_draft_is_judged_by_the_mask_after_it() -> None:
    sampling = Sampling(temperature=0.0)
    masks = [mask_of({5}), mask_of({6, 7}), mask_of({8})]
    drafted = Chunk([1, 2, 3], 2, 3, [], 3, sampling, (5, 6), masks=lambda: masks)
    samples = choose_run(LOGITS.expand(3, -1), [1, 1, 1], drafted, KERNELS)
    assert [sample.token for sample in samples if isinstance(sample, Sample)] == [5, 7], "7 is likelier than the draft"
