"""An engine for one command in the terminal: started with a progress bar, ended with the command."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from server.config import EngineOptions
from server.console.progress import ProgressBar
from server.engine.client import EngineClient, Listener
from server.engine.messages import Ready
from server.engine.supervisor import Care


class EngineFailed(Exception):
    """The engine could not start; the message is its reason."""


@asynccontextmanager
async def running(
    options: EngineOptions, max_queue: int, listener: Listener | None = None, care: Care | None = None
) -> AsyncIterator[EngineClient]:
    """An engine that takes orders. Raises EngineFailed. What `listener` hears of starts and failures is for us."""
    bar = ProgressBar()
    settled = asyncio.Event()

    def on_ready(_: Ready) -> None:
        settled.set()

    def on_failure(_: str) -> None:
        settled.set()

    listener = replace(listener or Listener(), on_progress=bar, on_ready=on_ready, on_failure=on_failure)
    engine = EngineClient(options, max_queue, listener, care)
    await engine.start()
    try:
        await settled.wait()
        bar.close()
        if engine.failure is not None:
            raise EngineFailed(engine.failure)
        yield engine
    finally:
        await engine.stop()


def complain(error: EngineFailed) -> int:
    """Tells the reason in one line; the exit code."""
    print(f"headrace: {error}", file=sys.stderr)
    return 1
