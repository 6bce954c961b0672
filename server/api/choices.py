"""A whole answer's pieces put together again, choice by choice."""

from dataclasses import dataclass, field
from typing import Any, Literal

from model.batch import Finding
from server.api.sse import to_json
from server.generator import Piece, TokenText

LEAST_LOGPROB = -9999.0  # OpenAI's figure for the unlikely; JSON has no infinity


@dataclass(slots=True)
class Choice:
    index: int
    text: str = ""
    tokens: list[TokenText] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def ids(self) -> dict[str, list[int]]:
        """The field for clients that count in tokens, under vLLM's name."""
        return {"token_ids": [token.id for token in self.tokens]}


def choices_of(pieces: list[Piece]) -> list[Choice]:
    """In the order of their index."""
    choices: dict[int, Choice] = {}
    texts: dict[int, list[str]] = {}
    for piece in pieces:
        choice = choices.setdefault(piece.index, Choice(piece.index))
        texts.setdefault(piece.index, []).append(piece.text)
        choice.tokens += piece.tokens
        choice.findings += piece.findings
        choice.finish_reason = piece.finish_reason or choice.finish_reason
    for index, choice in choices.items():
        choice.text = "".join(texts[index])
    return [choices[index] for index in sorted(choices)]


def ids_field(tokens: list[TokenText]) -> bytes:
    """The same for an event, led by a comma."""
    return b',"token_ids":' + to_json([token.id for token in tokens])


def logprob_of(token: TokenText) -> float:
    """Natural logarithm, never below `LEAST_LOGPROB`."""
    assert token.logprob is not None, "asked for logprobs of a request without them"
    return max(token.logprob, LEAST_LOGPROB)


def described(tokens: list[TokenText]) -> list[dict[str, Any]]:
    """Tokens with their log probabilities and alternatives, as OpenAI writes them of messages."""
    return [{**_entry(token), "top_logprobs": [_entry(other) for other in token.top]} for token in tokens]


def _entry(token: TokenText) -> dict[str, Any]:
    return {"token": token.text, "logprob": logprob_of(token), "bytes": list(token.bytes)}
