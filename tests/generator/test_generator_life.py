"""Does a generation tell everything once and in order, and end cleanly whichever way it ends?"""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from scripted_engine import Engine, Stream, all_of, request, settle, text_of

from server.engine.messages import Delta
from server.errors import EngineGone, InternalError
from server.generator import Generator


async def test_what_waits_for_a_slow_reader_is_one_piece_per_choice(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request(n=2))
    for letter in "abcdefgh":
        engine.streams[0].say(letter)
        engine.streams[1].say(letter.upper())
        await settle()
    pieces = generation.__aiter__()
    assert [(piece.index, piece.text) for piece in [await anext(pieces), await anext(pieces)]] == [
        (0, "abcdefgh"),
        (1, "ABCDEFGH"),
    ]
    for stream in engine.streams:
        stream.say(".", "length")
    assert [(piece.index, piece.text, piece.finish_reason) async for piece in pieces] == [
        (0, ".", "length"),
        (1, ".", "length"),
    ]


async def test_pieces_come_in_the_order_in_which_their_tokens_came(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request(n=3))
    order = [2, 0, 1, 1, 2]
    pieces = generation.__aiter__()
    seen = []
    for index in order:
        engine.streams[index].say("x")
        seen.append((await anext(pieces)).index)
    assert seen == order
    await pieces.aclose()


async def test_an_engines_error_comes_after_the_text_before_it_and_cancels_the_others(
    generator: Generator, engine: Engine
) -> None:
    generation = generator.start(request(n=3))
    engine.streams[0].say("fine", "length")
    engine.streams[1].say("so far")
    engine.streams[1].say([], "error", error="the model computed NaN")
    iterator = generation.__aiter__()
    pieces = [await anext(iterator), await anext(iterator)]
    with pytest.raises(InternalError, match=r"request: the model computed NaN\."):
        await anext(iterator)
    assert (text_of(pieces, 0), text_of(pieces, 1)) == ("fine", "so far")
    assert [stream.cancels for stream in engine.streams] == [0, 0, 1]


async def test_an_engine_that_goes_away_ends_every_choice(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request(n=2))
    for stream in engine.streams:
        stream.fail(EngineGone("The engine has stopped."))
    with pytest.raises(EngineGone):
        await all_of(generation)
    assert [stream.cancels for stream in engine.streams] == [0, 0]


async def test_what_came_while_a_piece_was_read_is_told_before_a_failure(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request())
    engine.streams[0].say("one ")
    batches = generation.batches()
    told = text_of(await anext(batches))
    engine.streams[0].say("two")
    engine.streams[0].say([], "error", error="no")
    await settle()
    told += text_of(await anext(batches))
    assert told == "one two"
    with pytest.raises(InternalError):
        await anext(batches)


async def test_a_batch_holds_what_every_choice_has_ready(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request(n=3))
    for stream in engine.streams:
        stream.say("x", "length")
    assert [[piece.index for piece in pieces] async for pieces in generation.batches()] == [[0, 1, 2]]


async def test_a_stream_without_an_end_is_an_error(generator: Generator, engine: Engine) -> None:
    class Ending(Stream):
        async def __aiter__(self) -> AsyncIterator[Delta]:
            for delta in ():
                yield delta

    engine.submit = lambda orders: [Ending(0)]  # type: ignore[method-assign]
    with pytest.raises(InternalError):
        await all_of(generator.start(request()))


async def test_closing_cancels_what_still_runs_exactly_once(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request(n=4))
    engine.streams[0].say("done", "length")
    engine.streams[1].say("running")
    engine.streams[2].say("failed", "error", error="no")
    await settle()
    generation.close()
    generation.close()
    assert [stream.cancels for stream in engine.streams] == [0, 1, 0, 1]


async def test_closing_ends_an_iteration_that_waits(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request())
    reader = asyncio.create_task(all_of(generation))
    engine.streams[0].say("some")
    await settle()
    generation.close()
    assert text_of(await reader) == "some"
    assert engine.streams[0].cancels == 1


async def test_a_reader_that_is_cancelled_cancels_the_choices(generator: Generator, engine: Engine) -> None:
    reader = asyncio.create_task(all_of(generator.start(request(n=2))))
    await settle()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert [stream.cancels for stream in engine.streams] == [1, 1]


async def test_closing_leaves_no_task_and_nothing_for_asyncio_to_complain_of(
    generator: Generator, engine: Engine
) -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    generation = generator.start(request(n=3))
    engine.streams[0].say([], "error", error="no")
    engine.streams[1].say("half")
    await settle()
    generation.close()
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    del generation
    gc.collect()
    assert complaints == []


async def test_each_choice_finishes_exactly_once(generator: Generator, engine: Engine) -> None:
    generation = generator.start(request(n=4, stop=("ab",)))
    for stream in engine.streams:
        stream.say("xx")
        stream.say("ab" if stream.id % 2 else "ba", "length")
        stream.say("beyond the end")
    pieces = await all_of(generation)
    finishes = Counter((piece.index, piece.finish_reason) for piece in pieces if piece.finish_reason)
    assert finishes == {(0, "length"): 1, (1, "stop"): 1, (2, "length"): 1, (3, "stop"): 1}
    assert [text_of(pieces, index) for index in range(4)] == ["xxba", "xx", "xxba", "xx"]
