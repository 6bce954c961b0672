"""The generator is Philox, and its numbers are uniform in every direction in which they are used."""

import numpy as np
import pytest
from scipy import stats

from model.kernels.philox import philox, uniform

COUNT = 20_000


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_known_answers_of_random123_hold(counter: str, key: str, want: str) -> None:
    a, b, c, d = (int(word, 16) for word in counter.split())
    low, high = (int(word, 16) for word in key.split())
    assert [f"{word:08x}" for word in philox((a, b, c, d), (low, high))] == want.split()


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, -1])
def test_the_positions_of_a_seed_are_uniform(seed: int) -> None:
    numbers = np.array([uniform(seed, position) for position in range(COUNT)])
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(stats.pearsonr(numbers[:-1], numbers[1:]).statistic) < 0.02


def test_the_seeds_of_a_position_are_uniform_and_neighbours_are_unrelated() -> None:
    numbers = np.array([uniform(seed, 7) for seed in range(COUNT)])
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(stats.pearsonr(numbers[:-1], numbers[1:]).statistic) < 0.02


def test_all_bits_of_seed_and_position_count() -> None:
    places = [(0, 0), (1, 0), (1 << 32, 0), (1 << 63, 0), (0, 1), (0, 1 << 32), (1, 1)]
    assert len({uniform(seed, position) for seed, position in places}) == len(places)


def test_a_negative_seed_is_its_64_bits() -> None:
    assert uniform(-1, 5) == uniform(2**64 - 1, 5)
