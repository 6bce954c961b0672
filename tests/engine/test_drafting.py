"""Are drafts what followed the same words before, and only where that pays?"""

from random import Random

import pytest

from server.engine.drafting import ROW_COST, WORDS, Drafter, price

CHEAP = price(1)


def drafts(tokens: list[int], most: int = 4) -> tuple[int, ...]:
    """Of a sequence whose tokens are all prompt: no guess has been checked."""
    return Drafter(tokens, len(tokens)).propose(most, 0.0)


def test_a_draft_is_what_followed_the_same_words_before() -> None:
    assert drafts([1, 2, 3, 4, 5, 6, 7, 1, 2, 3]) == (4, 5, 6, 7)
    assert drafts([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], most=2) == (4, 5)


def test_nothing_is_guessed_where_nothing_repeats() -> None:
    assert drafts([1]) == drafts([1, 2]) == drafts([1, 2, 3, 4, 5, 6]) == ()


def test_one_word_says_too_little() -> None:
    assert drafts([1, 2, 3, 1]) == ()


def test_of_several_places_the_latest_counts() -> None:
    assert drafts([1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3], most=1) == (60,)


def test_three_words_say_more_than_two() -> None:
    assert drafts([1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3], most=1) == (50,)


def test_a_repetition_that_reaches_the_end_goes_on() -> None:
    assert drafts([7, 7, 7], most=5) == (7,) * 5
    assert drafts([1, 2, 3, 1, 2, 3, 1], most=7) == (2, 3, 1, 2, 3, 1, 2)


@pytest.mark.parametrize("seed", range(20))
def test_token_by_token_is_the_same_as_a_search_from_scratch(seed: int) -> None:
    random = Random(seed)
    tokens: list[int] = []
    growing = Drafter(tokens, 10_000)
    for _ in range(200):
        tokens += random.choices(range(4), k=random.randint(1, 3))
        assert growing.propose(5, 0.0) == found_by_search(tokens, 5)


def found_by_search(tokens: list[int], most: int) -> tuple[int, ...]:
    for words in WORDS:
        for start in range(len(tokens) - words - 1, -1, -1):
            if tokens[start : start + words] == tokens[len(tokens) - words :]:
                future = list(tokens)
                for position in range(start + words, start + words + most):
                    future.append(future[position])
                return tuple(future[len(tokens) :])
    return ()


def test_drafts_grow_shorter_and_cease_where_they_are_wrong_and_come_back_where_they_are_right() -> None:
    tokens = [1, 2, 3] * 4
    drafter = Drafter(tokens, len(tokens))
    lengths = []
    for token in [1, 2, 3] * 3 + [4, 1, 2] * 6 + [1, 2, 3] * 8:
        lengths.append(len(drafter.propose(7, CHEAP)))
        tokens.append(token)
    start, trusted, doubted, regained = lengths[0], lengths[8], min(lengths[9:27]), lengths[-1]
    assert start < trusted == regained == 7
    assert doubted < start


def test_a_drafter_that_is_always_wrong_falls_silent() -> None:
    tokens = [1, 2, 50]
    drafter = Drafter(tokens, 3)
    for other in range(100, 120):
        tokens += [1, 2]
        drafter.propose(7, CHEAP)
        tokens.append(other)
    tokens += [1, 2]
    assert drafter.propose(7, CHEAP) == ()


def test_what_the_prompt_repeats_says_nothing_of_the_answer() -> None:
    quarrelsome = [token for other in range(100, 140) for token in (1, 2, other)] + [1, 2]
    assert drafts(quarrelsome, most=1) == (139,)
    assert Drafter(quarrelsome, len(quarrelsome)).propose(1, CHEAP) == (139,)


def test_the_more_rows_a_step_has_the_surer_a_draft_must_be() -> None:
    prices = [price(rows) for rows in range(1, 600)]
    assert prices[0] == pytest.approx(ROW_COST)
    assert prices == sorted(prices)
    assert prices[-1] < 1
