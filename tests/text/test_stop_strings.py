"""Is a text cut where a naive search cuts it, with no more held back than need be?"""

import random
import time

from server.text.stop_strings import StopStrings


def cut_naively(text: str, stop: list[str]) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        complete = [string for string in stop if text[:end].endswith(string)]
        if complete:
            found = max(complete, key=len)
            return text[: end - len(found)], found
    return text, None


def held_naively(text: str, stop: list[str]) -> int:
    proper_prefixes = {string[:length] for string in stop for length in range(1, len(string))}
    return max((length for length in range(1, len(text) + 1) if text[-length:] in proper_prefixes), default=0)


def random_case(draw: random.Random) -> tuple[list[str], list[str]]:
    stop = ["".join(draw.choices("ab", k=draw.randrange(1, 7))) for _ in range(draw.randrange(1, 5))]
    pieces = ["".join(draw.choices("aab", k=draw.randrange(0, 5))) for _ in range(draw.randrange(0, 12))]
    return stop, pieces


def test_the_text_is_cut_where_a_naive_search_cuts_it() -> None:
    draw = random.Random(7)
    found = 0
    for _ in range(20_000):
        stop, pieces = random_case(draw)
        machine = StopStrings(stop)
        text = "".join([*(machine.feed(piece) for piece in pieces), machine.flush()])
        assert (text, machine.found) == cut_naively("".join(pieces), stop)
        found += machine.found is not None
    assert 1_000 < found < 19_000


def test_it_holds_back_what_may_become_a_stop_string_and_no_more() -> None:
    draw = random.Random(8)
    for _ in range(5_000):
        stop, pieces = random_case(draw)
        machine, fed, shown = StopStrings(stop), "", ""
        for piece in pieces:
            fed += piece
            shown += machine.feed(piece)
            if machine.found is not None:
                break
            assert fed.startswith(shown)
            assert len(fed) - len(shown) == held_naively(fed, stop)


def test_nothing_comes_after_a_stop_string() -> None:
    machine = StopStrings(["END"])
    assert machine.feed("some E") == "some "
    assert machine.feed("ND of it") == ""
    assert machine.feed("more") == ""
    assert machine.flush() == ""
    assert machine.found == "END"


def test_without_stop_strings_everything_passes() -> None:
    machine = StopStrings([])
    assert machine.feed("all of it") == "all of it"
    assert machine.flush() == ""


def test_characters_beyond_the_basic_plane_count_as_one() -> None:
    machine = StopStrings(["👩‍🚀"])
    assert [machine.feed(character) for character in "a👩‍🚀b"] == ["a", "", "", "", ""]
    assert machine.found == "👩‍🚀"


def test_the_worst_stop_strings_take_linear_time() -> None:
    stop = ["a" * 255 + "b", "a" * 254 + "c", "aab" * 80 + "d", "a" * 128 + "b" + "a" * 127]
    machine = StopStrings(stop)
    start = time.monotonic()
    shown = "".join(machine.feed("a") for _ in range(100_000)) + machine.flush()
    assert shown == "a" * 100_000
    assert time.monotonic() - start < 2.0
