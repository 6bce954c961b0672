"""When requests are sent: a constant number at once, or at random times of a given rate."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from server.bench.record import Record, Request

Ask = Callable[[Request], Awaitable[Record]]
Schedule = Sequence[tuple[float, Request]]  # seconds after the start, for the open loop, and what is sent


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`concurrency` users: each sends its next request when the last one is answered."""

    concurrency: int
    requests: int

    @property
    def level(self) -> float:
        return self.concurrency

    @property
    def label(self) -> str:
        return f"{self.concurrency} at once"

    def due_times(self, rng: random.Random) -> list[float]:
        return [0.0] * self.requests  # due as soon as a user is free


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Users who do not know of each other: Poisson arrivals, however long the answers take."""

    rate: float  # requests per second
    duration_s: float

    @property
    def level(self) -> float:
        return self.rate

    @property
    def label(self) -> str:
        return f"{self.rate:g}/s"

    def due_times(self, rng: random.Random) -> list[float]:
        """Seconds after the start, below `duration_s`; the gaps are exponential."""
        times: list[float] = []
        now = rng.expovariate(self.rate)
        while now < self.duration_s:
            times.append(now)
            now += rng.expovariate(self.rate)
        return times


Load = ClosedLoop | OpenLoop


async def drive(load: Load, schedule: Schedule, ask: Ask) -> list[Record]:
    """Sends every request once. Records come in the order sent."""
    match load:
        case ClosedLoop():
            return await keep_busy([request for _, request in schedule], load.concurrency, ask)
        case OpenLoop():
            return await send_on_time(schedule, ask)


async def keep_busy(requests: Sequence[Request], concurrency: int, ask: Ask) -> list[Record]:
    """A closed loop over the requests."""
    waiting = iter(requests)

    async def user() -> list[Record]:
        return [await ask(request) for request in waiting]  # all users draw from one iterator

    async with asyncio.TaskGroup() as group:
        users = [group.create_task(user()) for _ in range(min(concurrency, len(requests)))]
    return sorted((record for task in users for record in task.result()), key=lambda record: record.start)


async def send_on_time(schedule: Schedule, ask: Ask) -> list[Record]:
    """An open loop: nothing that the server does delays a request."""
    begin = time.monotonic()
    tasks: list[asyncio.Task[Record]] = []

    async def send(request: Request, due: float) -> Record:
        record = await ask(request)
        record.due = due
        return record

    async with asyncio.TaskGroup() as group:
        for after, request in schedule:
            due = begin + after
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(group.create_task(send(request, due)))
    return [task.result() for task in tasks]
