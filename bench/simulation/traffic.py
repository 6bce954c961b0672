"""Who asks what and when: lengths as people were seen to ask, arrivals at random, and how much prompts share."""

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

LENGTHS = Path(__file__).with_name("azure_conversations.csv")
IDS = tuple(range(1000, 40000))  # tokens that every model has, and none that means something


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request on its way to a router."""

    id: int
    at: float  # seconds
    prompt: list[int]
    output_tokens: int


def read_lengths(path: Path = LENGTHS, longest: int = 8192, scale: float = 1.0) -> list[tuple[int, int]]:
    """Equally likely pairs of a prompt's and its answer's length, scaled, but for those that a model cannot hold."""
    with path.open(newline="") as lines:
        rows = [(int(prompt), int(output)) for prompt, output in csv.reader(lines) if prompt.isdigit()]
    scaled = [(max(1, round(prompt * scale)), max(1, round(output * scale))) for prompt, output in rows]
    return [(prompt, output) for prompt, output in scaled if prompt + output <= longest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Poisson arrivals; each belongs to a group, with which it shares the beginning of its prompt.

    A group is what has a text of its own in front: a system prompt, a document, a long conversation. How many there
    are, how popular each is (the k-th by 1/k^skew) and how much of a prompt is its group's text are assumptions.
    """

    rate: float  # requests per second
    requests: int
    lengths: list[tuple[int, int]]
    groups: int
    shared: float  # of each prompt, so much of its beginning is its group's
    skew: float = 1.0
    seed: int = 0

    def __iter__(self) -> Iterator[Arrival]:
        rng = random.Random(self.seed)
        popularity = list(accumulate((1 + place) ** -self.skew for place in range(self.groups)))
        now = 0.0
        for id in range(self.requests):
            now += rng.expovariate(self.rate)
            (group,) = rng.choices(range(self.groups), cum_weights=popularity)
            length, output_tokens = rng.choice(self.lengths)
            common = round(length * self.shared)
            own = rng.choices(IDS, k=length - common)
            yield Arrival(id, now, self._text(group, common) + own, output_tokens)

    def _text(self, group: int, length: int) -> list[int]:
        return random.Random(f"{self.seed}/{group}").choices(IDS, k=length)
