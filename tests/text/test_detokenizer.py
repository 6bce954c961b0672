"""Is the text of a growing sequence the same as of the whole, and never part of a code point?"""

import random

from server.engine.messages import ModelCard
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer

ONE_BYTE_EACH = [bytes([byte]) for byte in range(256)]


def pieces_of(vocabulary: list[bytes], ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(vocabulary)
    return [*(detokenizer.feed(token) for token in ids), detokenizer.flush()]


def test_no_piece_holds_part_of_a_code_point(planes: dict[int, str], corpus: list[str]) -> None:
    for text in [*planes.values(), *corpus]:
        pieces = pieces_of(ONE_BYTE_EACH, list(text.encode()))
        assert "".join(pieces) == text
        assert [piece for piece in pieces if piece] == list(text)


def test_special_tokens_that_are_to_be_shown_are_text() -> None:
    detokenizer = Detokenizer([*ONE_BYTE_EACH, b"", b""], {256: b"[TOOL_CALLS]"})
    assert "".join(map(detokenizer.feed, [104, 256, 257, 105])) == "h[TOOL_CALLS]i"


async def test_streamed_text_is_the_decoded_text(
    byte_level: ModelCard, planes: dict[int, str], corpus: list[str]
) -> None:
    tokenizer = Tokenizer(byte_level)
    for text in [*planes.values(), *corpus]:
        ids = await tokenizer.encode(text, add_special_tokens=False)
        for end in {len(ids), len(ids) - 1, len(ids) // 2}:  # also where a code point is cut off
            assert "".join(pieces_of(tokenizer.token_bytes, ids[:end])) == tokenizer.decode(ids[:end])


def test_bytes_that_are_not_utf8_are_replaced_alike_however_they_are_cut() -> None:
    draw = random.Random(5)
    awkward = [0x41, 0x80, 0xBF, 0xC0, 0xC3, 0xA9, 0xE0, 0xE2, 0x82, 0xAC, 0xED, 0xA0, 0xF0, 0x9F, 0x98, 0x80, 0xF5]
    for _ in range(2000):
        data = bytes(draw.choices(awkward, k=draw.randrange(1, 12)))
        cuts = sorted(draw.choices(range(len(data) + 1), k=3))
        tokens = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert "".join(pieces_of(tokens, [0, 1, 2, 3])) == data.decode(errors="replace")


def test_an_unfinished_code_point_becomes_one_replacement_character_at_the_end() -> None:
    assert pieces_of([b"a\xf0\x9f", b"\x98"], [0, 1]) == ["a", "", "\ufffd"]


def test_it_knows_when_it_is_inside_a_character() -> None:
    detokenizer = Detokenizer([b"\xe2\x82", b"\xac"])
    detokenizer.feed(0)
    assert detokenizer.is_inside_character
    assert detokenizer.feed(1) == "€"
    assert not detokenizer.is_inside_character


def test_a_space_at_the_beginning_stays_since_it_continues_a_prompt() -> None:
    assert "".join(pieces_of([b" of", b" it"], [0, 1])) == " of it"
