"""`headrace verify`: are answers the same in every way that an engine may run the same requests?"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import msgspec
from tqdm import tqdm

from server.config import EngineOptions, ModelOptions
from server.console.running import EngineFailed, complain, running
from server.engine.child import ENGINE
from server.engine.client import EngineClient, Listener
from server.engine.messages import Delta, Ready, Stats
from server.engine.supervisor import Care, Cause
from server.errors import HeadraceError
from server.exactness.difference import Told, first_difference
from server.exactness.questions import COUNT, Question, longest, questions

DESCRIPTION = "Show on this machine that a request's tokens and log probabilities do not depend on what runs beside it."
EPILOG = f"""\
{COUNT} requests of many kinds are run alone, and then again side by side, with a cold and a warm prefix cache, with
speculation, across a kill of the engine, in small chunks, and with so little memory that they preempt each other.
Every token and every log probability has to be the same to the last bit. A way in which an engine did not run what
it was to run, such as one without a preemption, proves nothing and counts as a failure.

The difference of two tokens' logits tells how near a choice was. Where the kernels do not promise equal bits, the
table still tells what was seen.

Exit status: 0 if all answers are equal; 1 if one differs or the model cannot be run; 2 for a wrong option.
"""

_STEP_TOKENS = 37  # no multiple of a block, so that chunks end anywhere
_GIB = 1024**3


@dataclass(slots=True)
class Answer:
    tokens: list[Told] = field(default_factory=list)
    error: str | None = None

    def hear(self, delta: Delta) -> None:
        for token, logprobs in zip(delta.tokens, delta.logprobs or [], strict=True):
            self.tokens.append(Told(token, logprobs.chosen, dict(logprobs.top)))
        self.error = delta.error


@dataclass(slots=True)
class Seen:
    """What engines did while they were asked in one way."""

    side_by_side: int = 0  # sequences in one step, at most
    largest_step: int = 0  # tokens
    cached: int = 0  # prompt tokens
    drafts: int = 0  # accepted
    preemptions: int = 0
    ends: int = 0  # of engines


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run all requests. `evidence` is what makes it one: less than `least` of it proves nothing."""

    name: str
    evidence: Callable[[Seen], tuple[int, str]]
    least: int = 1
    at_once: int = COUNT
    is_reversed: bool = False
    is_killed: bool = False  # when half of the tokens are there


_ALONE = Way("alone", lambda seen: (seen.side_by_side, "side by side"), at_once=1)
_ON_ONE_ENGINE = (
    Way("in a batch, cold cache", lambda seen: (seen.side_by_side, "side by side"), least=COUNT // 2),
    Way("in a batch, warm cache", lambda seen: (seen.cached, "tokens cached"), is_reversed=True),
    Way("speculating", lambda seen: (seen.drafts, "drafts right"), at_once=1),
    Way("engine killed", lambda seen: (seen.ends, "engine replaced"), is_killed=True),
)
_ON_A_SMALL_ENGINE = (
    Way("in small chunks", lambda seen: (seen.largest_step, "tokens a step"), at_once=4),
    Way("preempted", lambda seen: (seen.preemptions, "preemptions")),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one way."""

    way: str
    evidence: str
    requests: int
    tokens: int
    verdict: str
    is_good: bool


class Asker:
    """Asks engines and keeps an eye on them."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._care = Care(command=command)
        self._seen = Seen()

    def run(self, options: EngineOptions) -> AbstractAsyncContextManager[EngineClient]:
        return running(options, COUNT, Listener(on_stats=self._on_stats, on_restart=self._on_restart), self._care)

    def _on_stats(self, stats: Stats) -> None:
        self._seen.side_by_side = max(self._seen.side_by_side, stats.running)
        self._seen.largest_step = max(self._seen.largest_step, stats.step_tokens)

    def _on_restart(self, _: Cause, __: int) -> None:
        self._seen.ends += 1

    async def ask(self, engine: EngineClient, asked: list[Question], way: Way) -> tuple[list[Answer], Seen]:
        """The answers in the order of the questions, and what the engine did meanwhile. Raises EngineFailed."""
        seen = self._seen = Seen()
        before = engine.stats
        room = asyncio.Semaphore(way.at_once)
        left = sum(question.order.max_tokens for question in asked) // 2 if way.is_killed else -1

        async def answer(question: Question) -> Answer:
            nonlocal left
            said = Answer()
            async with room:
                async for delta in _deltas(engine, question):
                    said.hear(delta)
                    if 0 < left <= len(delta.tokens):
                        _kill(engine)
                    left -= len(delta.tokens)
            bar.update()
            return said

        with tqdm(total=len(asked), desc=way.name, unit="request", disable=None, leave=False, file=sys.stderr) as bar:
            answers = await asyncio.gather(*map(answer, asked[::-1] if way.is_reversed else asked))
        if engine.failure is not None or engine.stats is None:
            raise EngineFailed(engine.failure or "the engine has computed nothing")
        seen.cached = engine.stats.prefix_hits - (before.prefix_hits if before else 0)
        seen.drafts = engine.stats.drafts_accepted - (before.drafts_accepted if before else 0)
        seen.preemptions = engine.stats.preemptions - (before.preemptions if before else 0)
        return answers[::-1] if way.is_reversed else answers, seen


async def _deltas(engine: EngineClient, question: Question) -> AsyncIterator[Delta]:
    """What the engine says; a failure outside of it as if it had said so."""
    try:
        (stream,) = engine.submit([question.order])
        async for delta in stream:
            yield delta
    except HeadraceError as error:
        yield Delta(0, [], None, "error", 0, error.message)


def _kill(engine: EngineClient) -> None:
    assert engine.pid is not None, "it has just spoken"
    os.kill(engine.pid, signal.SIGKILL)


class Verification:
    """Runs every way and holds each against the first."""

    def __init__(self, options: ModelOptions, command: tuple[str, ...]) -> None:
        self._options = msgspec.structs.asdict(options)
        self._asker = Asker(command)
        self._asked: list[Question] = []
        self._golden: list[Answer] = []
        self.rows: list[Row] = []

    async def run(self) -> Ready:
        """What computed. Raises EngineFailed."""
        async with self._asker.run(self._engine(prefix_cache=False, speculation=False)) as engine:
            assert engine.card is not None, "it runs"
            assert engine.ready is not None, "it runs"
            ready = engine.ready
            if engine.longest < (reach := longest(ready.block_size)):
                raise EngineFailed(f"{reach} tokens of context are needed for this, and there are {engine.longest}")
            self._asked = questions(engine.card, ready.block_size)
            self._golden, seen = await self._asker.ask(engine, self._asked, _ALONE)
            self._add(_ALONE, self._golden, seen)
        async with self._asker.run(self._engine()) as engine:
            await self._try(engine, _ON_ONE_ENGINE)
        kv_memory = -(-reach // ready.block_size) * ready.block_bytes / _GIB  # room for the longest one alone
        async with self._asker.run(self._engine(kv_memory=kv_memory, step_tokens=_STEP_TOKENS)) as engine:
            await self._try(engine, _ON_A_SMALL_ENGINE)
        return ready

    def _engine(self, **differences: object) -> EngineOptions:
        return msgspec.convert(self._options | differences, EngineOptions)

    async def _try(self, engine: EngineClient, ways: tuple[Way, ...]) -> None:
        for way in ways:
            answers, seen = await self._asker.ask(engine, self._asked, way)
            self._add(way, answers, seen)

    def _add(self, way: Way, answers: list[Answer], seen: Seen) -> None:
        count, what = way.evidence(seen)
        faults = [fault for place in range(len(answers)) if (fault := self._fault(place, answers[place]))]
        if count < way.least:
            faults.append(f"{count} {what}: this way was not tried")
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        verdict = faults[0] + more if faults else "as alone" if self.rows else "what the others are held against"
        tokens = sum(len(answer.tokens) for answer in answers)
        self.rows.append(Row(way.name, f"{count:,} {what}", len(answers), tokens, verdict, is_good=not faults))

    def _fault(self, place: int, answer: Answer) -> str | None:
        """What is wrong with an answer; None if it is the one that was given alone."""
        golden, request = self._golden[place], f"request {place} ({self._asked[place].name})"
        if answer.error is not None:
            return f"{request}: {answer.error}"
        difference = first_difference(golden.tokens, answer.tokens)
        return None if difference is None else f"{request}, {difference}"


async def verify(options: ModelOptions, command: tuple[str, ...] = ENGINE) -> int:
    """Prints a row for every way; the exit code. `command` starts an engine."""
    start = time.monotonic()
    verification = Verification(options, command)
    try:
        ready = await verification.run()
    except EngineFailed as error:
        return complain(error)
    rows = verification.rows
    print(_table(rows))
    if not ready.is_exact:
        print(f"{ready.kernels} on {ready.device} promises no equal bits: the table tells what was seen this time")
    differing = sum(not row.is_good for row in rows)
    verdict = f"{differing} of {len(rows)} ways differ" if differing else "every token and log probability is equal"
    print(f"{ready.device}, {ready.dtype}, {ready.kernels}: {verdict} ({time.monotonic() - start:.0f} s)")
    return 1 if differing else 0


def _table(rows: list[Row]) -> str:
    lines = [f"{'way':<22}  {'evidence':<20}  {'requests':>8}  {'tokens':>7}  result"]
    lines += [f"{row.way:<22}  {row.evidence:<20}  {row.requests:>8}  {row.tokens:>7,}  {row.verdict}" for row in rows]
    return "\n".join(lines)
