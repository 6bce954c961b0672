"""How engines follow each other: by a spare that waits, by a fresh one, and what requests may expect in between."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from model.batch import Sampling
from server.config import EngineOptions
from server.engine.client import EngineClient, Listener
from server.engine.streams import Order, TokenStream
from server.engine.supervisor import Care
from server.errors import EngineGone

ORDER = Order([5, 6, 7], 200, [], Sampling(temperature=1.0, seed=3))


@asynccontextmanager
async def engine(model: Path, care: Care) -> AsyncIterator[tuple[EngineClient, asyncio.Event]]:
    """A client whose engine is ready, and what tells that it has lost one."""
    is_ready, is_lost = asyncio.Event(), asyncio.Event()
    listener = Listener(on_ready=lambda _: is_ready.set(), on_restart=lambda *_: is_lost.set())
    client = EngineClient(EngineOptions(model=str(model)), 8, listener, care)
    await client.start()
    try:
        await asyncio.wait_for(is_ready.wait(), 120)
        yield client, is_lost
    finally:
        await client.stop()


async def read(stream: TokenStream) -> list[int]:
    return [token async for delta in stream for token in delta.tokens]


async def killed(client: EngineClient, is_lost: asyncio.Event) -> None:
    assert client.pid is not None
    is_lost.clear()
    os.kill(client.pid, signal.SIGKILL)
    await asyncio.wait_for(is_lost.wait(), 30)


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_true():  # noqa: ASYNC110 - a process tells nobody that it has begun
            await asyncio.sleep(0.02)


def spare(client: EngineClient) -> int | None:
    child = client._supervisor._spare
    return None if child is None or child.has_ended else child.pid


async def test_the_spare_becomes_the_next_engine_and_gets_a_spare_itself(tiny_model: Path) -> None:
    async with engine(tiny_model, Care(keeps_spare=True, spare_after_s=0.0)) as (client, is_lost):
        (stream,) = client.submit([ORDER])
        golden = await read(stream)
        for _ in range(2):
            await until(lambda: spare(client) is not None)
            waiting = spare(client)
            (stream,) = client.submit([ORDER])
            reading = asyncio.create_task(read(stream))
            await asyncio.sleep(0)
            await killed(client, is_lost)
            assert await asyncio.wait_for(reading, 60) == golden
            assert client.pid == waiting


async def test_a_spare_that_has_died_is_not_used(tiny_model: Path) -> None:
    async with engine(tiny_model, Care(keeps_spare=True, spare_after_s=0.0)) as (client, is_lost):
        await until(lambda: spare(client) is not None)
        dead = spare(client)
        assert dead is not None
        os.kill(dead, signal.SIGKILL)
        await until(lambda: spare(client) is None)
        (stream,) = client.submit([ORDER])
        await killed(client, is_lost)
        assert len(await asyncio.wait_for(read(stream), 60)) == ORDER.max_tokens
        assert client.pid != dead


async def test_without_an_engine_requests_are_queued_for_a_while_and_then_refused(tiny_model: Path) -> None:
    async with engine(tiny_model, Care()) as (client, is_lost):
        await killed(client, is_lost)
        (queued,) = client.submit([ORDER])
        assert len(await asyncio.wait_for(read(queued), 60)) == ORDER.max_tokens
    async with engine(tiny_model, Care(resume_window_s=0.0)) as (client, is_lost):
        (live,) = client.submit([ORDER])
        await killed(client, is_lost)
        with pytest.raises(EngineGone) as refused:
            client.submit([ORDER])
        assert (refused.value.status, refused.value.code) == (503, "engine_restarting")
        assert len(await asyncio.wait_for(read(live), 60)) == ORDER.max_tokens, "what is live is not given up"
        (after,) = client.submit([ORDER])
        assert len(await asyncio.wait_for(read(after), 60)) == ORDER.max_tokens
