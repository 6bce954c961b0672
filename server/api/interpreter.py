"""What the pieces of an answer mean, choice by choice: reasoning, text and calls of tools."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from server.generator import Piece, TokenText, Usage
from server.text.answer_parser import AnswerParser
from server.text.detokenizer import Detokenizer
from server.text.parts import Part, Reasoning

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Heard:
    """A piece, read. Its parts may lag behind its tokens, as far as what they mean is not certain yet."""

    index: int
    parts: list[Part]
    tokens: list[TokenText]
    finish_reason: FinishReason | None
    stop_string: str | None


class _Choice:
    def __init__(self, parser: AnswerParser, detokenizer: Detokenizer) -> None:
        self._parser = parser
        self._detokenizer = detokenizer
        self._decoded = 0  # characters
        self._starts: list[int] = []  # of the tokens that may belong to the reasoning

    def hear(self, piece: Piece) -> Heard:
        if self._parser.is_reasoning:
            self._place(piece.tokens)
        parts = self._parser.feed(piece.text)
        reason: FinishReason | None = piece.finish_reason
        if reason is not None:
            parts += self._parser.end()
        if reason == "stop" and self._parser.has_called:
            reason = "tool_calls"
        return Heard(piece.index, parts, piece.tokens, reason, piece.stop_string)

    def _place(self, tokens: list[TokenText]) -> None:
        for token in tokens:
            self._starts.append(self._decoded)
            self._decoded += len(self._detokenizer.feed(token.id))

    @property
    def reasoning_tokens(self) -> int:
        """Those that begin before the end of the reasoning, its marks included."""
        length = self._parser.reasoning_length
        if length is not None:
            self._starts = [start for start in self._starts if start < length]
        return len(self._starts)


class Interpreter:
    """Reads all choices of one request. Every piece is to be heard once, in order."""

    def __init__(
        self,
        new_parser: Callable[[], AnswerParser],
        new_detokenizer: Callable[[], Detokenizer],
        *,
        tells_reasoning: bool = True,
    ) -> None:
        """Detokenizers are to see what the pieces' own saw."""
        self._new_parser, self._new_detokenizer = new_parser, new_detokenizer
        self._tells_reasoning = tells_reasoning
        self._choices: dict[int, _Choice] = {}

    def hear(self, piece: Piece) -> Heard:
        if piece.index not in self._choices:
            self._choices[piece.index] = _Choice(self._new_parser(), self._new_detokenizer())
        heard = self._choices[piece.index].hear(piece)
        if self._tells_reasoning:
            return heard
        return replace(heard, parts=[part for part in heard.parts if not isinstance(part, Reasoning)])

    def counted(self, usage: Usage) -> Usage:
        """The usage with what was heard of reasoning so far."""
        return replace(usage, reasoning_tokens=sum(choice.reasoning_tokens for choice in self._choices.values()))
