"""Are the ids the library's, and the bytes those of the text, for every kind of tokenizer and at any length?"""

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import tokenizers

from server.engine.messages import ModelCard
from server.text.tokenizer import Tokenizer


def joined(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    return b"".join(tokenizer.token_bytes[token] for token in ids)


async def test_the_bytes_of_byte_level_tokens_are_the_bytes_of_the_text(
    byte_level: ModelCard, planes: dict[int, str], corpus: list[str]
) -> None:
    tokenizer = Tokenizer(byte_level)
    for text in [*planes.values(), *corpus]:
        ids = await tokenizer.encode(text, add_special_tokens=False)
        assert joined(tokenizer, ids) == text.encode()
        assert tokenizer.decode(ids) == text


async def test_byte_fallback_gives_every_character_its_own_bytes(llama: ModelCard, planes: dict[int, str]) -> None:
    tokenizer = Tokenizer(llama)
    for text in planes.values():
        ids = await tokenizer.encode(text, add_special_tokens=False)
        assert joined(tokenizer, ids) == b" " + text.replace("▁", " ").encode()


async def test_ids_and_decoded_text_are_the_librarys(any_kind: ModelCard, corpus: list[str]) -> None:
    tokenizer, library = Tokenizer(any_kind), tokenizers.Tokenizer.from_str(any_kind.tokenizer)
    for text in corpus:
        ids = library.encode(text, add_special_tokens=True).ids
        assert await tokenizer.encode(text, add_special_tokens=True) == ids
        assert tokenizer.decode(ids) == library.decode(ids)
        assert tokenizer.decode(ids, show_special=True) == library.decode(ids, skip_special_tokens=False)


def test_any_order_of_byte_level_tokens_decodes_as_in_the_library(byte_level: ModelCard) -> None:
    tokenizer, library = Tokenizer(byte_level), tokenizers.Tokenizer.from_str(byte_level.tokenizer)
    odd = library.token_to_id("é!")  # the library takes the alphabet's é for a byte, even in an added token
    ids = [token for token in range(library.get_vocab_size()) if token != odd]
    draw = random.Random(3)
    for _ in range(300):
        some = draw.choices(ids, k=40)
        assert tokenizer.decode(some) == library.decode(some)


async def test_special_tokens_are_no_part_of_a_text_unless_asked_for(byte_level: ModelCard) -> None:
    tokenizer = Tokenizer(byte_level)
    text = "<|im_start|>user\nHi <tool>\u00e9!<|im_end|>"
    ids = await tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == "user\nHi <tool>\u00e9!"
    assert joined(tokenizer, ids) == "user\nHi <tool>\u00e9!".encode()
    assert tokenizer.decode(ids, show_special=True) == text
    assert tokenizer.token_text(ids[0]).text == "<|im_start|>"


def test_rows_beyond_the_vocabulary_stand_for_nothing(any_kind: ModelCard) -> None:
    tokenizer = Tokenizer(any_kind)
    last = any_kind.vocab_size - 1
    assert len(tokenizer.token_bytes) == any_kind.vocab_size
    assert tokenizer.token_bytes[last] == b""
    assert tokenizer.token_text(last).text == ""
    assert tokenizer.decode([last]) == ""


async def test_a_token_that_is_not_utf8_on_its_own_shows_its_bytes(byte_level: ModelCard) -> None:
    tokenizer = Tokenizer(byte_level)
    ids = await tokenizer.encode("\U000131d0", add_special_tokens=False)  # unseen in training: one token a byte
    shown = [tokenizer.token_text(token, -1.5) for token in ids]
    assert b"".join(token.bytes for token in shown) == "\U000131d0".encode()
    assert {token.text for token in shown} == {"\ufffd"}
    assert shown[0].logprob == -1.5


def changed(card: ModelCard, **fields: object) -> ModelCard:
    definition = msgspec.json.decode(card.tokenizer) | fields
    return msgspec.structs.replace(card, tokenizer=msgspec.json.encode(definition).decode())


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "BPEDecoder", "suffix": "</w>"}]},
    ],
)
def test_a_decoder_that_cannot_be_followed_is_an_error_at_load(byte_level: ModelCard, decoder: object) -> None:
    with pytest.raises(ValueError, match=r"^tokenizer: .*decoder"):
        Tokenizer(changed(byte_level, decoder=decoder))


@pytest.mark.parametrize("definition", ["", "{", "[]", "{}", '{"added_tokens": 3}'])
def test_a_broken_tokenizer_is_an_error_at_load(byte_level: ModelCard, definition: str) -> None:
    with pytest.raises(ValueError, match=r"^tokenizer: "):
        Tokenizer(msgspec.structs.replace(byte_level, tokenizer=definition))


async def test_truncation_and_padding_in_the_file_do_not_change_prompts(byte_level: ModelCard) -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 99},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<s>",
    }
    plain, odd = Tokenizer(byte_level), Tokenizer(changed(byte_level, truncation=truncation, padding=padding))
    text = "twelve words or so, none of which may be cut or filled up"
    assert await odd.encode(text, add_special_tokens=True) == await plain.encode(text, add_special_tokens=True)


SHAPES: dict[str, Callable[[int], str]] = {
    "a": lambda n: "a" * n,
    "space": lambda n: " " * n,
    "newline": lambda n: "\n" * n,
    "emoji": lambda n: "😀" * n,
    "combining marks": lambda n: "e" + "\u0301" * (n - 1),
    "special token text": lambda n: "<|im_start|>" * (n // 12),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_480000_characters_of_one_kind_encode_within_a_second(byte_level: ModelCard, shape: str) -> None:
    tokenizer, text = Tokenizer(byte_level), SHAPES[shape](480_000)
    start = time.process_time()  # of all threads: the machine may be busy with something else
    await tokenizer.encode(text, add_special_tokens=False)
    assert time.process_time() - start <= 1.0


async def test_the_event_loop_runs_on_while_a_long_text_is_encoded(byte_level: ModelCard) -> None:
    tokenizer = Tokenizer(byte_level)
    work = asyncio.create_task(tokenizer.encode("some words and " * 100_000, add_special_tokens=False))
    start = last = time.monotonic()
    longest_stall = 0.0
    while not work.done():
        await asyncio.sleep(0)
        last, before = time.monotonic(), last
        longest_stall = max(longest_stall, last - before)
    assert longest_stall < (last - start) / 2


def test_sixteen_threads_encode_at_once(byte_level: ModelCard, corpus: list[str]) -> None:
    tokenizer = Tokenizer(byte_level)
    expected = [asyncio.run(tokenizer.encode(text, add_special_tokens=True)) for text in corpus]

    def encode_all(_: int) -> bool:
        async def once() -> list[list[int]]:
            return [await tokenizer.encode(text, add_special_tokens=True) for text in corpus]

        return all(asyncio.run(once()) == expected for _ in range(20))

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(encode_all, range(16)))
