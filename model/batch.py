"""What crosses between scheduling and computing: plain data, and the only file that both sides know."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

GREEDY = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a request chooses its next token. The defaults change nothing: they sample the model's own distribution.

    A draw depends on `seed` and the token's position only, never on the batch (see `model/sampling.py`).
    """

    temperature: float = 1.0  # GREEDY takes the most likely token
    top_p: float = 1.0  # keep the smallest set of likeliest tokens that holds this probability
    top_k: int = 0  # keep this many of the likeliest tokens; 0 keeps all
    min_p: float = 0.0  # keep tokens at least this likely relative to the likeliest
    repetition_penalty: float = 1.0  # divides (multiplies) positive (negative) logits of tokens in prompt or output
    presence_penalty: float = 0.0  # subtracted once from the logits of tokens in the output
    frequency_penalty: float = 0.0  # subtracted per occurrence in the output
    logit_bias: dict[int, float] = field(default_factory=dict)  # added to the logits of these tokens
    allowed_token_ids: tuple[int, ...] = ()  # no other is chosen; empty allows all
    bad_words: tuple[tuple[int, ...], ...] = ()  # no such run of tokens comes to stand in the output
    grammar: str | None = None  # what the whole output has to follow, as llguidance takes it
    min_tokens: int = 0  # the output's first so many tokens are none of `ending_ids`
    ending_ids: tuple[int, ...] = ()  # the tokens that would end the request
    last_resort_ids: tuple[int, ...] = ()  # chosen only where a mask allows nothing else, as are `ending_ids` too early
    seed: int = 0
    top_logprobs: int | None = None  # alternatives to report beside the chosen token's logprob; None reports neither

    @property
    def is_plain(self) -> bool:
        """The row of logits, the seed and the position decide the token, and nothing but the token is told."""
        is_bound = self.allowed_token_ids or self.bad_words or self.grammar or self.min_tokens or self.last_resort_ids
        is_moved = self.logit_bias or self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        return not (is_bound or is_moved) and self.top_logprobs is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a prompt's own rows tell: the log probability of the token after each, or one vector for all of them.

    Rows are read in their order, each once. It is carried from step to step: see `after`.
    """

    start: int = 0  # the first row that is still to be read; those before may come from a cache
    top_logprobs: int | None = None  # alternatives beside each token's logprob; None for the vector
    dimensions: int | None = None  # of the vector, which is the mean of the rows, cut off and brought to length 1
    total: bytes = b""  # the sum of the rows read so far, for the vector

    def stop(self, prompt_length: int) -> int:
        """The row after the last that is read. What follows the prompt's last row is no part of the prompt."""
        return prompt_length if self.top_logprobs is None else prompt_length - 1

    def after(self, rows: int, prompt_length: int, total: bytes = b"") -> Self | None:
        """What is left to read when so many rows have been; None if nothing is."""
        start = self.start + rows
        return replace(self, start=start, total=total) if start < self.stop(prompt_length) else None


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part `tokens[start:stop]` of one sequence, and the `drafts` after it, to be computed in this step.

    `tokens` is the scheduler's own list of all that is known of the sequence: the model reads it and never writes.
    `blocks[p // block_size]` is the KV block of position p; every position below `start` is already in the cache.
    With `sampling` the chunk reaches the end of what is known, and the step chooses the token at position `stop`.
    With `masks` the choices are bound: it waits for, and gives, one mask a row that chooses, of which bit `i % 8` of
    byte `i // 8` is set where token i is allowed; a mask without bytes allows none. Where it gives nothing, they are
    late, and nothing is chosen.
    Drafts are guesses at the tokens from `stop` on. Where the choice is the first draft, the step chooses the token
    after it as well, and so on up to the first choice that is no draft: the choices are those of a step each.
    With `awaits` it is one token, which the step before is still choosing: `start` is where that will stand. That step
    has no drafts.
    """

    tokens: list[int]
    start: int
    stop: int
    blocks: list[int]
    prompt_length: int
    sampling: Sampling | None
    drafts: tuple[int, ...] = ()  # empty without `sampling`; `blocks` has room for them
    adapter: str | None = None  # the digest of the one it is computed with
    reading: Reading | None = None  # starts at or after `start`
    masks: Callable[[], list[bytes] | None] | None = None  # None without `sampling`
    awaits: int | None = None  # its place among the choices of the step before

    @property
    def is_foreseeable(self) -> bool:
        """What it does to its sequence is known before it is computed, but for which token comes next."""
        return not (self.drafts or self.masks or self.reading) and (self.sampling is None or self.sampling.is_plain)

    @property
    def output(self) -> list[int]:
        """What has been chosen before this step."""
        return self.tokens[self.prompt_length : self.stop]

    @property
    def end(self) -> int:
        """Position after the last row."""
        return self.stop + len(self.drafts)

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def read_rows(self) -> range:
        """Positions of the rows that this step reads."""
        if self.reading is None:
            return range(0)
        return range(self.reading.start, min(self.stop, self.reading.stop(self.prompt_length)))

    def knowing(self, accepted: int) -> "Chunk":
        """The chunk that would have been, had so many of the drafts been known."""
        if not accepted:
            return self
        tokens = [*self.tokens[: self.stop], *self.drafts[:accepted]]
        return replace(self, tokens=tokens, stop=self.stop + accepted, drafts=self.drafts[accepted:])


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything that one step computes. Chunks of prefill and decode mix freely; their order has no meaning."""

    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of the model's own distribution, before penalties, bias, temperature and truncation."""

    chosen: float
    top: list[tuple[int, float]]  # (token, logprob), likeliest first; the chosen one's entry is bit-equal to `chosen`

    def cut(self, top: int) -> Self:
        """With no more than so many alternatives."""
        return self if len(self.top) <= top else replace(self, top=self.top[:top])


@dataclass(frozen=True, slots=True)
class Sample:
    """A token chosen for one chunk."""

    token: int
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a step has read of one prompt."""

    rows: int  # so many, from where the chunk's `reading` started
    logprobs: list[Logprobs] = field(default_factory=list)  # of the tokens after these rows
    ranks: list[int] = field(default_factory=list)  # of the same tokens; 1 is the likeliest
    total: bytes = b""  # for the next step's `reading`
    vector: bytes = b""  # fp32, little-endian; with the last row


class DeadEnd(str):
    """Why no token was chosen where that is the request's own doing: what it asks for leaves none."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """One entry per chunk of the batch: what was chosen, in order, or the error that kept it from choosing at all.

    A chunk without `sampling` has chosen nothing, nor one whose masks are late; with it, one token, and one more for
    each draft that came true.
    """

    samples: list[list[Sample] | str]
    findings: dict[int, Finding] = field(default_factory=dict)  # by the chunk's place, where rows were read
