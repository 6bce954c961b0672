"""Does a request become the right orders, and do the tokens become the right text, tokens and counts?"""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from scripted_engine import EOS, LONGEST, Engine, all_of, request, settle, text_of

from model.batch import Logprobs, Sampling
from server.errors import Overloaded, PromptTooLong
from server.generator import Generator, Piece, Usage


async def test_choices_are_ordered_prompt_by_prompt_with_seeds_that_count_up_and_wrap(
    generator: Generator, engine: Engine
) -> None:
    sampling = Sampling(temperature=0.5, seed=2**63 - 2)
    generation = generator.start(request(prompts=[[1], [2, 3]], n=3, max_tokens=5, sampling=sampling))
    assert [order.prompt for order in engine.orders] == [[1]] * 3 + [[2, 3]] * 3
    assert [order.sampling.seed for order in engine.orders] == [2**63 - 2, 2**63 - 1, -(2**63)] * 2
    assert {order.sampling.temperature for order in engine.orders} == {0.5}
    assert {order.max_tokens for order in engine.orders} == {5}
    generation.close()


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({}, [EOS]),
        ({"stop_token_ids": (7, EOS)}, [EOS, 7]),
        ({"ignore_eos": True}, []),
        ({"ignore_eos": True, "stop_token_ids": (7,)}, [7]),
    ],
)
async def test_what_ends_an_answer_is_told_to_engine_and_sampler(
    generator: Generator, engine: Engine, fields: dict[str, object], ending: list[int]
) -> None:
    generator.start(request(**fields)).close()
    assert engine.orders[0].ending_ids == ending
    assert engine.orders[0].sampling.ending_ids == tuple(ending)


async def test_without_max_tokens_an_answer_may_fill_what_is_left(generator: Generator, engine: Engine) -> None:
    generator.start(request(prompts=[[1] * 60, [1] * (LONGEST - 1)])).close()
    assert [order.max_tokens for order in engine.orders] == [4, 1]


@pytest.mark.parametrize(
    ("length", "max_tokens", "message", "param"),
    [
        (LONGEST, None, "your prompt resulted in 64 tokens", "prompt"),
        (LONGEST + 1, 1, "your prompt resulted in 65 tokens", "prompt"),
        (60, 5, "you requested 65 tokens (60 in the prompt, 5 in the completion)", "prompt"),
        (1, 65, "you requested 66 tokens (1 in the prompt, 65 in the completion)", "max_tokens"),
    ],
)
async def test_what_cannot_fit_is_refused_before_anything_is_queued(
    generator: Generator, engine: Engine, length: int, max_tokens: int | None, message: str, param: str
) -> None:
    with pytest.raises(PromptTooLong) as caught:
        generator.start(request(prompts=[[1], [1] * length], max_tokens=max_tokens))
    assert message in caught.value.message
    assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")
    assert engine.orders == []


async def test_what_just_fits_is_queued(generator: Generator, engine: Engine) -> None:
    generator.start(request(prompts=[[1] * 60], max_tokens=4)).close()
    assert engine.orders[0].max_tokens == 4


async def test_a_full_queue_is_told_at_once(generator: Generator, engine: Engine) -> None:
    engine.is_full = True
    with pytest.raises(Overloaded):
        generator.start(request(n=4))


async def test_the_token_that_ends_an_answer_counts_and_does_not_show(generator: Generator, engine: Engine) -> None:
    for ending in (EOS, ord("!")):
        generation = generator.start(request(stop_token_ids=(ord("!"),)))
        engine.streams[-1].say("Hi")
        engine.streams[-1].say([ord("."), ending], "stop", cached_tokens=2)
        pieces = await all_of(generation)
        assert text_of(pieces) == "Hi."
        assert [token.id for piece in pieces for token in piece.tokens] == list(b"Hi.")
        assert [piece.finish_reason for piece in pieces][-1] == "stop"
        assert generation.usage == Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=2)
        assert engine.streams[-1].cancels == 0


async def test_an_answer_that_uses_up_its_tokens_shows_the_last_one(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request(max_tokens=3))
    engine.streams[0].say("Hi!", "length")
    (piece,) = await all_of(generation)
    assert (piece.text, piece.finish_reason) == ("Hi!", "length")


async def test_an_incomplete_character_shows_as_one_replacement_at_the_end(
    generator: Generator, engine: Engine
) -> None:
    generation = generator.start(request())
    engine.streams[0].say("€".encode()[:2], "length")
    assert text_of(await all_of(generation)) == "\ufffd"


async def test_a_stop_string_ends_the_answer_and_cancels_the_rest_of_it_once(
    generator: Generator, engine: Engine
) -> None:
    generation = generator.start(request(stop=("END", "never")))
    stream = engine.streams[0]
    stream.say("one E")
    stream.say("N")
    stream.say("D two")
    stream.say("three")
    pieces = await all_of(generation)
    generation.close()
    assert text_of(pieces) == "one "
    assert pieces[-1].finish_reason == "stop"
    assert stream.cancels == 1
    assert generation.usage.completion_tokens == len("one END")


async def test_a_stop_string_that_the_last_token_completes_is_a_stop(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request(stop=("END",)))
    engine.streams[0].say("the END", "length")
    pieces = await all_of(generation)
    assert (text_of(pieces), pieces[-1].finish_reason) == ("the ", "stop")
    assert engine.streams[0].cancels == 0


async def test_stopped_text_is_the_whole_text_cut_however_the_tokens_come(generator: Generator, engine: Engine) -> None:
    whole = "aab€abab😀aa€bb"
    for stop in ("ab", "aba", "€", "b€", "😀a", "bbb", "a", "€bb"):
        for size in range(1, 9):
            generation = generator.start(request(stop=(stop,)))
            data = whole.encode()
            for start in range(0, len(data), size):
                engine.streams[-1].say(data[start : start + size])
            engine.streams[-1].say([EOS], "stop")
            assert text_of(await all_of(generation)) == whole.split(stop)[0]


async def test_pieces_read_one_by_one_join_to_the_text_read_at_once(generator: Generator, engine: Engine) -> None:
    whole = "e\u0301 👩‍👩‍👧‍👦 \u4e2d \U000e0041 \U0010fffd ".encode() + b"\xff\xf0\x9f"
    streamed, at_once = generator.start(request()), generator.start(request())
    pieces: list[Piece] = []
    reader = asyncio.create_task(all_of(streamed))
    for place, byte in enumerate(whole):
        engine.streams[0].say([byte], "length" if place == len(whole) - 1 else None)
        engine.streams[1].say([byte], "length" if place == len(whole) - 1 else None)
        await settle()
    pieces = await reader
    assert len(pieces) > 15
    assert "\ufffd" not in text_of(pieces)[:-2]
    assert text_of(pieces) == whole.decode(errors="replace") == text_of(await all_of(at_once))


async def test_more_tokens_only_add_to_the_text(generator: Generator, engine: Engine) -> None:
    texts = []
    for length in range(1, 20):
        generation = generator.start(request(max_tokens=length))
        engine.streams[-1].say(b"a plain answer, long"[:length], "length")
        texts.append(text_of(await all_of(generation)))
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(texts))


async def test_every_token_travels_once_with_its_logprobs(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request(stop=("zz",), sampling=Sampling(top_logprobs=2)))
    data = "aé😀z!".encode()
    logprobs = [Logprobs(-0.1 * place, [(byte, -0.1 * place), (EOS, -9.0)]) for place, byte in enumerate(data)]
    reader = asyncio.create_task(all_of(generation))
    for place, byte in enumerate(data):
        engine.streams[0].say([byte], "length" if place == len(data) - 1 else None, logprobs=[logprobs[place]])
        await settle()
    pieces = await reader
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [token.id for token in tokens] == list(data)
    assert b"".join(token.bytes for token in tokens) == data
    assert [token.logprob for token in tokens] == [each.chosen for each in logprobs]
    assert all(token.top[0] == replace(token, top=[]) for token in tokens)
    assert {token.top[1].text for token in tokens} == {"<eos>"}
    assert [(piece.text, len(piece.tokens)) for piece in pieces] == [("a", 1), ("é", 2), ("😀", 4), ("z!", 2)]


async def test_prompt_tokens_count_once_per_prompt_and_cached_ones_for_its_first_choice(
    generator: Generator, engine: Engine
) -> None:
    generation = generator.start(request(prompts=[[1] * 10, [2] * 20], n=2))
    for stream, cached in zip(engine.streams, [0, 9, 16, 19], strict=True):
        stream.say("abc", "length", cached_tokens=cached)
    await all_of(generation)
    assert generation.usage == Usage(prompt_tokens=30, completion_tokens=12, cached_tokens=16)
