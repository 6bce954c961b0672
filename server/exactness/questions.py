"""What `headrace verify` asks: requests that differ in all that could make one depend on its company."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from model.batch import GREEDY, Sampling
from server.engine.messages import ModelCard
from server.engine.streams import Order

COUNT = 64
TOP_LOGPROBS = 20  # told with every token: they are compared too, and tell how near a choice was
LEAST_TOKENS, MOST_TOKENS = 8, 36

_PREFIX_BLOCKS = 5

_MANNERS = {
    "greedy": Sampling(temperature=GREEDY),
    "drawn": Sampling(),
    "penalised": Sampling(temperature=GREEDY, frequency_penalty=0.6, presence_penalty=0.3),
    "drawn from the nucleus": Sampling(temperature=0.7, top_p=0.9),
    "of two words": Sampling(temperature=GREEDY, logit_bias={1: 100.0, 2: 100.0}),  # so that guesses come true
    "drawn from few": Sampling(temperature=1.3, top_k=40, min_p=0.02),
    "less repetitive": Sampling(temperature=GREEDY, repetition_penalty=1.2),
    "drawn, not ending yet": Sampling(temperature=0.9, min_tokens=LEAST_TOKENS),
}


@dataclass(frozen=True, slots=True)
class Question:
    name: str
    order: Order


def longest(block_size: int) -> int:
    """Tokens that the longest question can come to, answer included."""
    return (_PREFIX_BLOCKS + 1) * block_size + MOST_TOKENS


def questions(card: ModelCard, block_size: int) -> list[Question]:
    """The same ones every time, of random words that any vocabulary has."""
    random = Random(0)
    prompts = zip(
        *(kind(random, card.vocab_size, block_size) for kind in (_own, _same, _parting, _copying)), strict=True
    )
    return [
        _question(place, kind, prompt, card)
        for place, (kind, prompt) in enumerate(named for group in prompts for named in group)
    ]


def _question(place: int, kind: str, prompt: list[int], card: ModelCard) -> Question:
    manner, sampling = list(_MANNERS.items())[place // 4 % len(_MANNERS)]
    ending_ids = tuple(card.eos_ids) if (place // 4 + place // 32) % 2 else ()  # each manner with them and without
    sampling = replace(sampling, seed=place, top_logprobs=TOP_LOGPROBS, ending_ids=ending_ids)
    max_tokens = LEAST_TOKENS + place * 7 % (MOST_TOKENS - LEAST_TOKENS + 1)
    name = f"{manner}, {len(prompt)} tokens {kind}"
    return Question(name, Order(prompt, max_tokens, list(ending_ids), sampling))


# Each kind yields COUNT / 4 prompts with what they are.
_Prompts = Iterator[tuple[str, list[int]]]


def _words(random: Random, vocabulary: int, count: int) -> list[int]:
    return [random.randrange(vocabulary) for _ in range(count)]


def _own(random: Random, vocabulary: int, block: int) -> _Prompts:
    """Around the ends of blocks."""
    around = (edge + step for edge in range(block, 6 * block, block) for step in (-1, 0, 1))
    for length in (1, *around):
        yield "of its own", _words(random, vocabulary, length)


def _same(random: Random, vocabulary: int, block: int) -> _Prompts:
    """A long prefix that all share, and a tail of every length up to a block."""
    prefix = _words(random, vocabulary, _PREFIX_BLOCKS * block)
    for place in range(COUNT // 4):
        yield "that begin as others do", prefix + _words(random, vocabulary, 1 + place % block)


def _parting(random: Random, vocabulary: int, block: int) -> _Prompts:
    """As others up to every place in a block."""
    prefix = _words(random, vocabulary, _PREFIX_BLOCKS * block)
    for place in range(COUNT // 4):
        yield "that part from others", prefix[: len(prefix) - place % block] + _words(random, vocabulary, 3)


def _copying(random: Random, vocabulary: int, block: int) -> _Prompts:
    """A few words again and again, which lets the next be guessed."""
    for place in range(COUNT // 4):
        yield "that repeat", _words(random, vocabulary, 4 + place) * 4
