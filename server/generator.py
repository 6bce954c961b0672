"""How prompts become pieces of text: submits sequences to the engine and turns their tokens into text that is final.

The interface that `server/api/*` and the command line share; filled in by the text room's author.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from model.batch import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate. Choice `j` of prompt `i` has index `i * n + j` and draws with seed `sampling.seed + j`."""

    prompts: list[list[int]]  # token ids, none empty
    source: str  # the API field the prompts came from ("messages", "prompt"), for error messages
    n: int = 1
    max_tokens: int | None = None  # per choice; None: as many as the context leaves
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as people read it. `text` replaces bytes that are not UTF-8 on their own by U+FFFD."""

    id: int
    text: str
    bytes: bytes
    logprob: float | None
    top: list["TokenText"]  # alternatives, likeliest first, with empty `top` of their own


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one choice that is final: it will not be taken back. The last piece of a choice has a finish reason."""

    index: int
    text: str
    tokens: list[TokenText]
    finish_reason: Literal["stop", "length"] | None


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Generation:
    """One running request: iterate for its pieces, read `usage` at any time, `close` cancels what still runs."""

    usage: Usage

    def __aiter__(self) -> AsyncIterator[Piece]: ...

    def close(self) -> None: ...
