"""What a growing answer consists of: its reasoning first, then text and calls of tools."""

from server.text.call_parser import CallParser
from server.text.parts import Part, Text, join
from server.text.reasoning import ReasoningParser


class AnswerParser:
    """One choice's text, fed as it comes, as parts; without either parser all of it is text."""

    def __init__(self, reasoning: ReasoningParser | None, calls: CallParser | None) -> None:
        self._reasoning = reasoning
        self._calls = calls

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next may be reasoning."""
        return self._reasoning is not None and not self._reasoning.is_over

    @property
    def reasoning_length(self) -> int | None:
        """Characters of the text up to the end of its reasoning, marks included; None where all of it is reasoning."""
        return 0 if self._reasoning is None else self._reasoning.length

    @property
    def has_called(self) -> bool:
        """Whether the answer so far calls tools, the last of them with all of its arguments."""
        return self._calls is not None and self._calls.has_called

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = [Text(text)] if self._reasoning is None else self._reasoning.feed(text)
        return join(self._with_calls(parts))

    def end(self) -> list[Part]:
        """The rest, once the text is whole."""
        parts = [] if self._reasoning is None else self._with_calls(self._reasoning.end())
        return join(parts + ([] if self._calls is None else self._calls.end()))

    def _with_calls(self, parts: list[Part]) -> list[Part]:
        if self._calls is None:
            return parts
        found: list[Part] = []
        for part in parts:
            found += self._calls.feed(part.text) if isinstance(part, Text) else [part]
        return found
