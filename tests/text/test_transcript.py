"""Does every token travel with its text, and end where the text ends?"""

import random
from itertools import pairwise

from server.text.detokenizer import Detokenizer
from server.text.tokenizer import TokenText
from server.text.transcript import Transcript


def token(place: int) -> TokenText:
    return TokenText(place, "", b"", None)


def told(pieces: list[bytes], stop: list[str]) -> list[tuple[str, list[int]]]:
    """What each token and the end make final; token i has the i-th bytes."""
    transcript, news = Transcript(Detokenizer(pieces), stop), []
    for place in range(len(pieces)):
        transcript.feed(token(place))
        news.append(transcript.take())
    transcript.end()
    news.append(transcript.take())
    return [(text, [each.id for each in tokens]) for text, tokens in news]


def test_a_token_travels_with_the_end_of_its_text() -> None:
    assert told([b"a", b"\xe2", b"\x82", b"\xacb", b"c"], []) == [
        ("a", [0]),
        ("", []),
        ("", []),
        ("€b", [1, 2, 3]),
        ("c", [4]),
        ("", []),
    ]


def test_a_token_that_is_held_back_in_part_travels_later() -> None:
    assert told([b"say E", b"N", b"!"], ["END"]) == [("say ", []), ("", []), ("EN!", [0, 1, 2]), ("", [])]


def test_tokens_at_a_stop_string_or_beyond_are_dropped_and_one_that_begins_before_it_is_kept() -> None:
    assert told([b"so ", b"it E", b"N", b"D it", b"is"], ["END"]) == [
        ("so ", [0]),
        ("it ", []),
        ("", []),
        ("", [1]),
        ("", []),
        ("", []),
    ]


def test_what_is_held_back_or_incomplete_at_the_end_shows_then() -> None:
    assert told([b"a E", b"\xe2\x82"], ["END"]) == [("a ", []), ("", []), ("E\ufffd", [0, 1])]


def test_tokens_without_text_are_kept_in_order() -> None:
    assert told([b"", b"a", b"", b"\xe2", b"", b"\x82\xac"], []) == [
        ("", [0]),
        ("a", [1]),
        ("", [2]),
        ("", []),
        ("", []),
        ("€", [3, 4, 5]),
        ("", []),
    ]


def test_without_stop_strings_every_token_is_told_exactly_once_with_all_its_text() -> None:
    draw = random.Random(19)
    for _ in range(500):
        text = "".join(draw.choices("aé€😀 ", k=12)).encode() + draw.choice([b"", b"\xf0\x9f", b"\xff"])
        cuts = sorted([0, len(text), *draw.choices(range(len(text) + 1), k=5)])
        pieces = [text[a:b] for a, b in pairwise(cuts)]
        news = told(pieces, [])
        assert "".join(said for said, _ in news) == text.decode(errors="replace")
        assert [place for _, places in news for place in places] == list(range(len(pieces)))


def test_the_text_is_cut_before_the_stop_string_wherever_the_tokens_are_cut() -> None:
    draw = random.Random(23)
    for _ in range(2_000):
        text = "".join(draw.choices("ab€", k=14))
        stop = ["".join(draw.choices("ab€", k=draw.randrange(1, 4)))]
        data = text.encode()
        pieces = [data[a:b] for a, b in pairwise(sorted([0, len(data), *draw.choices(range(len(data) + 1), k=5)]))]
        news = told(pieces, stop)
        assert "".join(said for said, _ in news) == text.split(stop[0])[0]
        places = [place for _, places in news for place in places]
        assert places == list(range(len(places)))
