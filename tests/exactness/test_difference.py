"""Where two answers part is found to the last bit, and the gap is told where it can be known."""

import math

import pytest

from server.exactness.difference import Told, first_difference


def told(*ids: int, logprob: float | None = None) -> list[Told]:
    return [Told(id, logprob) for id in ids]


def test_equal_answers_have_none() -> None:
    answer = [Told(1, -0.5, {1: -0.5, 2: -0.9})]
    assert first_difference(answer, [Told(1, -0.5, {1: -0.5, 2: -0.9})]) is None
    assert first_difference([], []) is None


def test_the_last_bit_of_a_logprob_counts_and_one_that_was_not_asked_for_does_not() -> None:
    next_to = math.nextafter(-0.5, 0)
    difference = first_difference(told(7, 8, logprob=-0.5), [Told(7, -0.5), Told(8, next_to)])
    assert difference is not None
    assert difference.position == 1
    assert difference.gap() == pytest.approx(2**-54, rel=1)
    assert str(difference).startswith("position 1: token 8 in both, logprob ")
    assert first_difference(told(7, 8), told(7, 8, logprob=-0.5)) is None


def test_the_odds_of_another_token_count() -> None:
    assert first_difference([Told(1, -0.5, {2: -0.9})], [Told(1, -0.5, {2: -0.8})]) is not None


@pytest.mark.parametrize("knows", [0, 1])
def test_the_gap_is_taken_from_whoever_names_both_tokens(knows: int) -> None:
    answers = [[Told(1, -0.5, {1: -0.5})], [Told(2, -0.75, {2: -0.75})]]
    answers[knows] = [Told(knows + 1, -0.5, {1: -0.5, 2: -0.75})]
    difference = first_difference(*answers)
    assert str(difference) == "position 0: token 2 instead of token 1, logit gap 0.25"


def test_a_gap_that_nobody_can_know_is_not_made_up() -> None:
    assert str(first_difference(told(1), told(2))) == "position 0: token 2 instead of token 1, logit gap unknown"


def test_an_end_is_a_difference() -> None:
    assert str(first_difference(told(1, 2), told(1))) == "position 1: the end instead of token 2"
    assert str(first_difference(told(1), told(1, 2))) == "position 1: token 2 instead of the end"
