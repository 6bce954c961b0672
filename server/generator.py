"""How prompts become pieces of text: submits sequences to the engine and turns their tokens into text that is final.

The interface that `server/api/*` and the command line share.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from model.batch import Finding, Reading, Sampling
from server.engine.interface import Engine
from server.engine.messages import Delta
from server.engine.streams import Order, TokenStream
from server.errors import BadRequest, InternalError, PromptTooLong
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer, TokenText
from server.text.transcript import Transcript

__all__ = ["Generation", "GenerationRequest", "Generator", "Piece", "TokenText", "Usage"]

AT_ONCE = 64  # sequences of one request that are with the engine; of longer lists, the next follow as these end


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate. Choice `j` of prompt `i` has index `i * n + j` and draws with seed `sampling.seed + j`."""

    prompts: list[list[int]]  # token ids, none empty
    source: str  # the API field the prompts came from ("messages", "prompt"), for error messages
    limit_source: str = "max_tokens"  # and the one that `max_tokens` came from
    n: int = 1
    max_tokens: int | None = None  # per choice; None: as many as the context leaves; 0: the prompts are only read
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    shown: Mapping[int, bytes] = field(default_factory=dict)  # special tokens that count as text, by what they say
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str | None = None  # a digest
    salt: str = ""
    priority: int = 0  # the lowest starts first
    readings: list[Reading] | None = None  # what each prompt tells of itself, once, in its first choice
    shows_ending: bool = False  # the token that ends a choice is among its tokens, without text

    @property
    def foreseen_tokens(self) -> int:
        """Of all prompts and choices, as far as the request says: an answer without a limit may come to more."""
        return sum(map(len, self.prompts)) + len(self.prompts) * self.n * (self.max_tokens or 0)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one choice that is final: it will not be taken back. The last piece of a choice has a finish reason.

    `tokens` are those whose text ends in this piece; the token that ended the choice shows in neither, unless asked
    for. `stop_string` is the one that ended the choice, if one did. `findings` is what the prompt has told of
    itself, in order, and comes with the last piece.
    """

    index: int
    text: str
    tokens: list[TokenText]
    finish_reason: Literal["stop", "length"] | None
    stop_string: str | None = None
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Timings:
    """How long a request took so far, all choices together: three parts in a row, of seconds."""

    queue_s: float  # until the first of its sequences was computed
    prefill_s: float  # from there to its first token
    decode_s: float  # from there to its last token
    decoded_tokens: int  # without each choice's first


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int  # once per prompt, however many choices
    completion_tokens: int  # of all choices, the tokens that ended them included
    cached_tokens: int  # of the prompts' tokens, those that came from the prefix cache for the prompt's first choice
    reasoning_tokens: int = 0  # of the completion's, told by whoever reads it
    timings: Timings | None = field(default=None, compare=False)  # told at the end


class Generator:
    """Turns requests into running generations, all on one engine."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._eos_ids = tuple(eos_ids)

    def start(self, request: GenerationRequest) -> "Generation":
        """Queues every choice, or the first `AT_ONCE` of many, or none. Must be called in an event loop.

        Raises PromptTooLong before anything is queued, and what `Engine.submit` raises.
        """
        is_bound = request.sampling.grammar is not None  # then an end may be all that can follow, whoever ignores it
        eos_ids = () if request.ignore_eos and not is_bound else self._eos_ids
        ending_ids = tuple(dict.fromkeys((*eos_ids, *request.stop_token_ids)))
        last_resort_ids = self._eos_ids if request.ignore_eos and is_bound else ()
        orders: list[Order] = []
        readings: Sequence[Reading | None] = request.readings or [None] * len(request.prompts)
        for prompt, reading in zip(request.prompts, readings, strict=True):
            max_tokens = self._allowed_tokens(prompt, request)
            for choice in range(request.n):
                seed = _wrap_int64(request.sampling.seed + choice)
                sampling = replace(request.sampling, seed=seed, ending_ids=ending_ids, last_resort_ids=last_resort_ids)
                orders.append(
                    Order(
                        prompt,
                        max_tokens,
                        list(ending_ids),
                        sampling,
                        adapter=request.adapter,
                        salt=request.salt,
                        priority=request.priority,
                        reading=None if choice else reading,
                    )
                )
        return Generation(request, self._engine, orders, self._tokenizer)

    def _allowed_tokens(self, prompt: list[int], request: GenerationRequest) -> int:
        limit, asked = self._engine.longest, request.max_tokens
        left = limit - len(prompt)
        if left < (1 if asked is None else asked):
            raise PromptTooLong(
                limit=limit,
                prompt_tokens=len(prompt),
                param=request.source,
                max_tokens=asked,
                limit_param=request.limit_source,
            )
        return left if asked is None else asked


def _wrap_int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


class _Choice:
    """One choice: its stream of tokens, what they say, and whether it goes on."""

    def __init__(self, index: int, order: Order, transcript: Transcript) -> None:
        self.index = index
        self.order = order
        self.stream: TokenStream | None = None  # until it is its turn
        self.transcript = transcript
        self.findings: list[Finding] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self.is_over = False  # the engine has finished it, or was told to
        self.completion_tokens = 0
        self.cached_tokens = 0

    def cancel(self) -> None:
        if not self.is_over:
            self.is_over = True
            if self.stream is not None:
                self.stream.cancel()

    def take_piece(self) -> Piece | None:
        """What is final and not yet taken; None if that is nothing."""
        text, tokens = self.transcript.take()
        if not text and not tokens and self.finish_reason is None:
            return None
        findings = [] if self.finish_reason is None else self.findings
        return Piece(self.index, text, tokens, self.finish_reason, self.transcript.stop_string, findings)


class Generation:
    """One running request: iterate for its pieces, read `usage` at any time, `close` cancels what still runs.

    What is not read yet waits merged, one piece per choice, so a slow reader costs no more than the text itself.
    Iterating raises InternalError where the engine failed on a choice, and what a stream was ended with, such as
    EngineGone or ServerDraining; the rest is cancelled then.
    """

    def __init__(self, request: GenerationRequest, engine: Engine, orders: list[Order], tokenizer: Tokenizer) -> None:
        self._request = request
        self._engine = engine
        self._tokenizer = tokenizer
        self._choices = [
            _Choice(index, order, Transcript(Detokenizer(tokenizer.token_bytes, request.shown), request.stop))
            for index, order in enumerate(orders)
        ]
        for choice, stream in zip(self._choices, engine.submit(orders[:AT_ONCE]), strict=False):
            choice.stream = stream
        self._ending_ids = frozenset(orders[0].ending_ids)
        self._ready: dict[int, _Choice] = {}  # those with something to take, in the order in which it arrived
        self._news = asyncio.Event()
        lanes = [self._choices[first::AT_ONCE] for first in range(min(AT_ONCE, len(orders)))]
        self._readers = [asyncio.create_task(self._read_lane(lane)) for lane in lanes]
        for reader in self._readers:
            reader.add_done_callback(lambda _: self._news.set())

    @property
    def usage(self) -> Usage:
        """What has been counted so far; complete once iterating has ended."""
        return Usage(
            prompt_tokens=sum(map(len, self._request.prompts)),
            completion_tokens=sum(choice.completion_tokens for choice in self._choices),
            cached_tokens=sum(choice.cached_tokens for choice in self._choices[:: self._request.n]),
        )

    @property
    def timed_usage(self) -> Usage:
        """The same with `timings`."""
        return replace(self.usage, timings=self._timings())

    def _timings(self) -> Timings | None:
        all_lives = [choice.stream.life for choice in self._choices if choice.stream is not None]
        lives = [life for life in all_lives if life.first_token is not None]
        if not lives:
            return None
        submitted = min(life.submitted for life in lives)
        first = min(life.first_token for life in lives if life.first_token is not None)
        started = min((life.started for life in lives if life.started is not None), default=first)
        last = max(life.last_token for life in lives if life.last_token is not None)
        decoded = sum(max(choice.completion_tokens - 1, 0) for choice in self._choices)
        return Timings(started - submitted, first - started, last - first, decoded)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async with contextlib.aclosing(self.batches()) as batches:
            async for pieces in batches:
                for piece in pieces:
                    yield piece

    async def batches(self) -> AsyncGenerator[list[Piece], None]:
        """As iterating, but all pieces that are ready at a time: after a step, those of every choice it moved."""
        try:
            while True:
                self._news.clear()
                if pieces := self._take_pieces():
                    yield pieces
                    continue  # meanwhile there may be more, and what was said before a failure is told before it
                for reader in self._readers:
                    if reader.done() and not reader.cancelled():
                        reader.result()  # raises what befell the choice
                if all(reader.done() for reader in self._readers):
                    return
                await self._news.wait()
        finally:
            self.close()

    def _take_pieces(self) -> list[Piece]:
        choices, self._ready = self._ready, {}
        return [piece for choice in choices.values() if (piece := choice.take_piece()) is not None]

    def close(self) -> None:
        """Cancels what still runs, each choice exactly once. May be called again."""
        for choice in self._choices:
            choice.cancel()
        for reader in self._readers:
            reader.cancel()  # of one that has failed, this tells asyncio that nobody will ask how

    async def _read_lane(self, lane: list[_Choice]) -> None:
        """One choice after the other."""
        for choice in lane:
            if choice.stream is None:
                (choice.stream,) = self._engine.submit([choice.order])
            await self._read(choice, choice.stream)

    async def _read(self, choice: _Choice, stream: TokenStream) -> None:
        async for delta in stream:
            self._hear(choice, delta)
            self._ready.setdefault(choice.index, choice)
            self._news.set()
            if choice.is_over and delta.finish is None:
                return  # cancelled for a stop string: the stream says no more
        if not choice.is_over:
            raise InternalError("The engine left an answer without an end.")

    def _hear(self, choice: _Choice, delta: Delta) -> None:
        if delta.finish is not None:
            choice.is_over = True
        if delta.finish == "error":
            raise InternalError(f"The server failed on this request: {delta.error}.")
        if delta.finish == "dead_end":
            raise BadRequest(f"The answer cannot go on: {delta.error}.", code="no_token_allowed")
        choice.cached_tokens = delta.cached_tokens
        if delta.finding is not None:
            choice.findings.append(delta.finding)
        for place, token in enumerate(delta.tokens):
            choice.completion_tokens += 1
            ends = delta.finish == "stop" and place == len(delta.tokens) - 1 and token in self._ending_ids
            if ends and not self._request.shows_ending:
                break
            told = self._tokenizer.describe(token, delta.logprobs[place] if delta.logprobs else None)
            feed = choice.transcript.feed_silent if ends else choice.transcript.feed
            feed(told)
            if choice.transcript.is_stopped:
                break
        if delta.finish is not None:
            choice.transcript.end()
            choice.finish_reason = delta.finish
        if choice.transcript.is_stopped:
            choice.finish_reason = "stop"
            choice.cancel()
