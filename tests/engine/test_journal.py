"""Who is submitted to the next engine, and who is suspected of having ended the last ones."""

import pytest

from model.batch import Sampling
from server.engine.journal import SURVIVAL_TOKENS, Entry, Journal
from server.engine.messages import Delta
from server.engine.streams import Order, TokenStream


@pytest.fixture
def journal() -> Journal:
    journal = Journal()
    for id in (1, 2, 3):
        journal.add(Order([id, 10 + id], 50, [], Sampling(seed=id)), TokenStream(id, lambda id: None))
    return journal


def submit(journal: Journal) -> list[int]:
    """Whose turn it is, all of which then take part in a step."""
    due = journal.due()
    journal.start([run_of(entry) for entry in due])
    return [entry.stream.id for entry in due]


def run_of(entry: Entry) -> int:
    assert entry.run is not None
    return entry.run


def move(journal: Journal, run: int, tokens: int = SURVIVAL_TOKENS, cached: int = 0) -> None:
    for token in range(tokens):
        assert journal.record(Delta(run, [token], None, None, cached)) is not None


def lose(journal: Journal) -> list[int]:
    return [entry.stream.id for entry in journal.lose_engine()]


async def test_everything_is_submitted_once_to_each_engine_with_what_came_of_it(journal: Journal) -> None:
    first = journal.due()
    assert journal.due() == []
    move(journal, run_of(first[1]), 3, cached=1)
    assert lose(journal) == []
    again = journal.due()
    assert again == first
    order = again[1].submit()
    assert (order.prompt, order.output, order.cached_tokens) == ([2, 12], [0, 1, 2], 1)
    assert again[0].submit().cached_tokens is None


async def test_news_of_an_earlier_run_are_no_news(journal: Journal) -> None:
    run = run_of(journal.due()[0])
    lose(journal)
    journal.due()
    assert journal.record(Delta(run, [7], None, None, 0)) is None


async def test_who_moves_between_two_ends_is_no_suspect(journal: Journal) -> None:
    for _ in range(5):
        assert submit(journal) == [1, 2, 3]
        for entry in list(journal._runs.values()):
            move(journal, run_of(entry))
        assert lose(journal) == []


async def test_suspects_are_tried_one_by_one_and_the_guilty_one_is_found(journal: Journal) -> None:
    for _ in range(2):
        assert submit(journal) == [1, 2, 3]
        assert lose(journal) == []
    assert submit(journal) == [1]
    assert submit(journal) == []
    (run,) = journal._runs
    move(journal, run, SURVIVAL_TOKENS - 1)
    assert journal.acquit() is None
    move(journal, run, 1)
    assert journal.acquit() == run
    assert submit(journal) == [2]
    assert lose(journal) == [2]
    assert submit(journal) == [1, 3]


async def test_a_suspect_that_leaves_makes_room_for_the_next(journal: Journal) -> None:
    for _ in range(2):
        submit(journal)
        lose(journal)
    assert submit(journal) == [1]
    journal.remove(1)
    assert submit(journal) == [2]
    (run,) = journal._runs
    journal.record(Delta(run, [1], None, "stop", 0))
    assert submit(journal) == [3]


async def test_who_only_waited_is_no_suspect(journal: Journal) -> None:
    for _ in range(2):
        due = journal.due()
        journal.start([run_of(due[1])])
        assert lose(journal) == []
    assert submit(journal) == [2]
    assert lose(journal) == [2]
    assert submit(journal) == [1, 3]


async def test_an_engine_that_ends_before_any_order_accuses_nobody(journal: Journal) -> None:
    for _ in range(10):
        assert lose(journal) == []
    assert submit(journal) == [1, 2, 3]


async def test_a_new_request_waits_while_there_are_suspects(journal: Journal) -> None:
    for _ in range(2):
        submit(journal)
        lose(journal)
    journal.add(Order([4], 5, [], Sampling()), TokenStream(4, lambda id: None))
    assert submit(journal) == [1]
    for _ in (1, 2, 3):
        (run,) = journal._runs
        move(journal, run)
        journal.acquit()
        last = submit(journal)
    assert last == [1, 2, 3, 4]


async def test_another_engine_is_given_the_priority_as_well(journal: Journal) -> None:
    journal.add(Order([4], 5, [], Sampling(), priority=-3), TokenStream(4, lambda id: None))
    for _ in range(2):
        assert [entry.submit().priority for entry in journal.due()] == [0, 0, 0, -3]
        journal.lose_engine()


async def test_what_an_engine_of_another_client_has_begun_goes_on_here() -> None:
    journal = Journal()
    order = Order([1, 2], 50, [], Sampling(), begun=(7, 8), cached_tokens=1)
    journal.add(order, TokenStream(1, lambda id: None))
    (entry,) = journal.due()
    assert (entry.submit().output, entry.submit().cached_tokens) == ([7, 8], 1)
    move(journal, run_of(entry), 2)
    assert entry.submit().output == [7, 8, 0, 1]
    assert order.begun == (7, 8)
