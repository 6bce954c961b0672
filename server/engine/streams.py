"""What a request asks of the engine, and how it reads what comes of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from model.batch import Reading, Sampling
from server.engine.messages import Delta
from server.errors import HeadraceError


@dataclass(frozen=True, slots=True)
class Order:
    """A sequence to run."""

    prompt: list[int]
    max_tokens: int
    ending_ids: list[int]
    sampling: Sampling
    adapter: str | None = None  # a digest
    salt: str = ""
    priority: int = 0  # the lowest starts first
    reading: Reading | None = None
    begun: tuple[int, ...] = ()  # tokens of its answer that an engine of another client has chosen
    cached_tokens: int | None = None  # what was reported with them


@dataclass(frozen=True, slots=True)
class Stages:
    """How long a sequence took for each part of its life, in seconds; None for parts that it did not reach."""

    queue_s: float
    prefill_s: float | None
    decode_s: float | None


@dataclass(slots=True)
class Life:
    """When a sequence reached what, on the monotonic clock. An engine's end is no part of it: the stage lasts on."""

    submitted: float
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None  # so far

    def hear_prefill(self, prefill_s: float) -> None:
        """When it started, by somebody else's clock who has computed its prompt."""
        if self.started is None and self.first_token is not None:
            self.started = max(self.first_token - prefill_s, self.submitted)

    def stages(self) -> Stages:
        now = time.monotonic()
        if self.started is None:
            return Stages(now - self.submitted, None, None)
        queue_s = self.started - self.submitted
        if self.first_token is None:
            return Stages(queue_s, None, None)
        return Stages(queue_s, self.first_token - self.started, now - self.first_token)


class TokenStream:
    """The deltas of one sequence, the last of which has a finish reason.

    A slow reader costs nothing but memory for its tokens: the engine never waits for it.
    """

    def __init__(self, id: int, cancel: Callable[[int], None]) -> None:
        self.id = id
        self.life = Life(time.monotonic())
        self._cancel = cancel
        self._deltas: list[Delta] = []
        self._error: HeadraceError | None = None
        self._is_over = False
        self._arrival = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """No more will come."""
        return self._is_over

    def put(self, delta: Delta) -> None:
        if delta.tokens:
            self.life.last_token = time.monotonic()
            self.life.first_token = self.life.first_token or self.life.last_token
        self._deltas.append(delta)
        self._is_over = delta.finish is not None
        self._arrival.set()

    def fail(self, error: HeadraceError) -> None:
        """No more will come. The reader has what was put before, and then `error`."""
        self._error = error
        self._is_over = True
        self._arrival.set()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while True:
            for delta in await self.take():
                yield delta
                if delta.finish is not None:
                    return

    async def take(self) -> list[Delta]:
        """All that has come since, at least one; not to be asked after the last. Raises what the stream ends with."""
        while not self._deltas:
            if self._error is not None:
                raise self._error
            await self._arrival.wait()
            self._arrival.clear()
        deltas, self._deltas = self._deltas, []
        return deltas

    def cancel(self) -> None:
        """Lets the engine forget the sequence; may be called at any time and any number of times."""
        if not self._is_over:
            self._is_over = True
            self._cancel(self.id)
