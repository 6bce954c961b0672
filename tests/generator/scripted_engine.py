"""An engine whose every word the test chooses, at the seam of EngineClient, and how tests read what comes of it."""

import asyncio
import time
from collections.abc import AsyncIterator

from server.engine.messages import Delta, FinishReason
from server.engine.streams import Life, Order
from server.errors import HeadraceError, Overloaded
from server.generator import Generation, GenerationRequest, Piece

LONGEST = 64
EOS = 256


class Stream:
    """What the engine says of one sequence; the delta with a finish reason is the last."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.life = Life(time.monotonic())
        self.cancels = 0
        self._is_over = False
        self._inbox: asyncio.Queue[Delta | HeadraceError] = asyncio.Queue()

    def say(self, text: str | bytes | list[int], finish: FinishReason | None = None, **fields: object) -> None:
        tokens = list(text.encode() if isinstance(text, str) else text)
        delta = Delta(self.id, tokens, **{"logprobs": None, "finish": finish, "cached_tokens": 0, **fields})
        self._inbox.put_nowait(delta)

    def fail(self, error: HeadraceError) -> None:
        self._inbox.put_nowait(error)
        self._is_over = True

    def cancel(self) -> None:
        if not self._is_over:
            self.cancels += 1

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while True:
            delta = await self._inbox.get()
            if isinstance(delta, HeadraceError):
                raise delta
            yield delta
            if delta.finish is not None:
                return


class Engine:
    longest = LONGEST

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.streams: list[Stream] = []
        self.is_full = False
        self.failure: str | None = None

    def submit(self, orders: list[Order]) -> list[Stream]:
        if self.is_full:
            raise Overloaded("The queue is full.")
        self.orders += orders
        self.streams += [Stream(len(self.streams) + place) for place in range(len(orders))]
        return self.streams[-len(orders) :]


def request(**fields: object) -> GenerationRequest:
    return GenerationRequest(**{"prompts": [[1, 2, 3]], "source": "prompt", **fields})


async def all_of(generation: Generation) -> list[Piece]:
    return [piece async for piece in generation]


def text_of(pieces: list[Piece], index: int = 0) -> str:
    return "".join(piece.text for piece in pieces if piece.index == index)


async def settle() -> None:
    """Lets every task run until all of them wait."""
    for _ in range(20):
        await asyncio.sleep(0)
