"""Which engine process runs: one after the other, each of them watched, for as long as that gets anywhere."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from server.config import EngineOptions
from server.engine.child import ENGINE, Child
from server.engine.messages import Failed, FromEngine, Ping, Ready, Step
from server.logs import Log

MAX_FRUITLESS = 5  # engines in a row that end before they have done anything

_TURNS = 10  # how often an engine is asked for a sign of life before its silence is too long
_GENEROUS = 10  # so many times what it took at first, a step or a load may take later
_SETTLED_S = 60.0  # an engine that has been up for so long has got somewhere, even without work
_STACKS_S = 1.0  # to write them
_MAX_PAUSE_S = 5.0

log = Log(__name__)

Cause = Literal["crash", "hang"]
CAUSES: tuple[Cause, ...] = ("crash", "hang")


@dataclass(frozen=True, slots=True, kw_only=True)
class Care:
    """How engines are looked after."""

    command: tuple[str, ...] = ENGINE
    watchdog_s: float = 30.0  # an engine that says nothing for so long is replaced; more where its steps are long
    first: Child | None = None  # started by `command` before, to be the first engine
    keeps_spare: bool = False  # a process that has imported all it needs waits to become the next engine
    spare_after_s: float = 5.0  # not before: starting it would slow down the first requests
    resume_window_s: float = 60.0  # without an engine, new requests are queued for so long, and later refused


class Supervisor:
    """Runs engines. `hear` gets what they say; `lose` is told that one has ended and why, and says whether the cause
    is known and gone."""

    def __init__(
        self,
        options: EngineOptions,
        care: Care,
        hear: Callable[[FromEngine], None],
        lose: Callable[[Cause], bool],
    ) -> None:
        self.child: Child | None = None
        self.is_hung = False  # the engine has been silent for too long and is about to be ended
        self._silent = 0  # turns
        self._options = options
        self._care = care
        self._hear = hear
        self._lose = lose
        self._spare = care.first
        self._spawning: asyncio.Task[None] | None = None
        self._refusal: str | None = None  # why the engine itself says that it cannot run
        self._first_load_s: float | None = None
        self._up = asyncio.Event()
        self._up_since = 0.0
        self._step_s = 0.0  # the largest
        self._is_fruitful = False  # the engine has moved a sequence
        self._heard = False  # since the last Ping

    async def run(self) -> str:
        """Returns why there will be no engine any more."""
        fruitless = 0
        try:
            while True:
                how = await self._attend(await self._next())
                if self._refusal is not None:
                    return self._refusal
                if self._first_load_s is None:
                    return f"the engine process ended {how} before it was ready"
                log.warning("engine ended", how=how, hung=self.is_hung, fruitless=not self._is_fruitful)
                fruitless = 1 if self._is_fruitful else fruitless + 1
                if self._lose("hang" if self.is_hung else "crash"):
                    fruitless = 0
                if fruitless == MAX_FRUITLESS:
                    return f"the engine process ended {fruitless} times without getting anywhere, the last time {how}"
                self.is_hung = False
                await asyncio.sleep(min(0.0 if fruitless < 2 else 2.0 ** (fruitless - 4), _MAX_PAUSE_S))
        finally:
            await self._end()

    async def _next(self) -> Child:
        """The spare if there is one, else a new process; told its options, so that it loads."""
        child = await self._take_spare() or Child(self._care.command)
        await child.connect()
        child.send(self._options)
        self.child = child
        return child

    async def _attend(self, child: Child) -> str:
        """Listens to an engine until it ends; how it ended, in words."""
        started = time.monotonic()
        self._is_fruitful, self._silent = False, 0
        self._up.clear()
        watching = asyncio.create_task(self._watch(child))
        try:
            async for message in child.messages():
                self._heard = True
                self._note(message, time.monotonic() - started)
                self._hear(message)
        finally:
            watching.cancel()
        how = await child.end()
        self._is_fruitful |= self._up.is_set() and time.monotonic() - self._up_since > _SETTLED_S
        return how

    def _note(self, message: FromEngine, age_s: float) -> None:
        """What of the engine's words concerns its own life."""
        match message:
            case Step(deltas) if deltas:
                self._is_fruitful = True
            case Failed(reason):
                self._refusal = reason
            case Ready(step_seconds=step_s):
                self._first_load_s = self._first_load_s or age_s
                self._up_since = time.monotonic()
                self._step_s = step_s
                self._up.set()
                if self._care.keeps_spare and (self._spawning is None or self._spawning.done()):
                    self._spawning = asyncio.create_task(self._spawn_spare())

    async def _watch(self, child: Child) -> None:
        """Ends an engine that has been silent for too long.

        It counts its own turns and not the clock, because while this process is itself stopped or busy, nothing that
        the engine says is heard.
        """
        if self._first_load_s is None:
            await self._up.wait()  # there may be gigabytes to download
        while self._silent < _TURNS - 1:
            self._heard = False
            if self._up.is_set():
                child.send(Ping())
            await asyncio.sleep(self._patience_s / _TURNS)
            self._silent = 0 if self._heard else self._silent + 1
        self.is_hung = True
        stacks = "none: the process is stopped" if child.is_stopped else "on stderr"
        log.error("engine hung", pid=child.pid, silent_s=round(self._patience_s, 1), stacks=stacks)
        child.dump_stacks()
        await asyncio.sleep(_STACKS_S)
        child.kill()

    @property
    def is_silent(self) -> bool:
        """The engine has given no sign of life for half of the time that makes it hung."""
        return self._silent >= _TURNS // 2

    @property
    def _patience_s(self) -> float:
        """How long an engine may be silent: a step says nothing until its end, and so does warming up."""
        longest_s = self._step_s if self._up.is_set() else self._first_load_s or 0.0
        return max(self._care.watchdog_s, longest_s * _GENEROUS)

    async def _spawn_spare(self) -> None:
        await asyncio.sleep(self._care.spare_after_s)
        self._spare = await self._take_spare() or Child(self._care.command)

    async def _take_spare(self) -> Child | None:
        spare, self._spare = self._spare, None
        if spare is not None and spare.has_ended:
            await spare.end()
            return None
        return spare

    async def _end(self) -> None:
        if self._spawning is not None:
            self._spawning.cancel()
        if self._spare is not None:
            self._spare.kill()
            await self._spare.end()
        if self.child is not None:
            await self.child.end()
