"""Whether the client is still there while its request is worked on."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client has closed its connection, or its side of it: nobody is left to answer."""


class Client:
    """Owns the receive channel once the body is read. A half-closed connection counts as closed."""

    def __init__(self, gone: asyncio.Future[Any]) -> None:
        self.gone = gone

    async def while_there(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs `work` to its end, or cancels it and raises ClientGone as soon as the client leaves."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self.gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})  # its own cleaning up comes first


@asynccontextmanager
async def watching(receive: Receive) -> AsyncIterator[Client]:
    """Awaits `http.disconnect` itself, because the framework does so for some responses and not for others."""
    gone = asyncio.create_task(_disconnect(receive), name="watch-client")
    try:
        yield Client(gone)
    finally:
        gone.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
