"""Where an answer's reasoning ends and what is said begins."""

from collections.abc import Collection
from dataclasses import dataclass

from server.text.markers import Edges, MarkerFinder
from server.text.parts import Part, Reasoning, Text


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The marks around the reasoning, which comes first in an answer."""

    opening: str
    closing: str

    def is_opened_by(self, prompt: str) -> bool:
        """Whether the template has begun the reasoning, so that the answer starts within it."""
        return prompt.rstrip().endswith(self.opening)


FORMATS = (ReasoningFormat("<think>", "</think>"), ReasoningFormat("[THINK]", "[/THINK]"))


def reasoning_format(template: str, tokens: Collection[str]) -> ReasoningFormat | None:
    """How a model marks its reasoning, by its chat template's source or else by its added tokens; None if it does not.

    The closing mark decides: templates that drop the reasoning of earlier turns name it and not the other.
    """
    for form in FORMATS:
        if form.closing in template or {form.opening, form.closing} <= set(tokens):
            return form
    return None


class ReasoningParser:
    """Takes an answer's reasoning from its beginning. `feed` and `end` give all of the text but marks and white space
    around them, in linear time.

    An answer that begins with anything else has no reasoning, and one that does not close it consists of nothing else.
    """

    def __init__(self, form: ReasoningFormat, *, is_open: bool) -> None:
        self._form = form
        self._closing = MarkerFinder(form.closing)
        self._edges = Edges()
        self._space: list[str] = []  # at the answer's beginning
        self._fed = self._length = 0  # characters
        self._begun = ""  # what may become the opening mark
        self._feed = self._inside if is_open else self._before

    @property
    def length(self) -> int | None:
        """Characters up to the end of the reasoning, marks included; None as long as it goes on."""
        return None if self._feed == self._inside else self._length

    @property
    def is_over(self) -> bool:
        """Whether all that follows is said."""
        return self._feed in (self._gap, self._after)

    def feed(self, text: str) -> list[Part]:
        self._fed += len(text)
        return self._feed(text)

    def end(self) -> list[Part]:
        if self._feed == self._before:
            return [self._said()]
        if self._feed == self._inside:
            return [Reasoning(self._edges.feed(self._closing.flush()))]
        return []

    def _before(self, text: str) -> list[Part]:
        if not self._begun:
            begun = text.lstrip()
            self._space.append(text[: len(text) - len(begun)])
            text = begun
        self._begun += text
        opening = self._form.opening
        if self._begun.startswith(opening):
            self._feed = self._inside
            return self._inside(self._begun[len(opening) :])
        if opening.startswith(self._begun):
            return []
        self._feed = self._after
        return [self._said()]

    def _said(self) -> Part:
        """What has come so far, as it was no reasoning."""
        return Text("".join(self._space) + self._begun)

    def _inside(self, text: str) -> list[Part]:
        text, rest = self._closing.feed(text)
        reasoning: list[Part] = [Reasoning(self._edges.feed(text))]
        if rest is None:
            return reasoning
        self._length = self._fed - len(rest)
        self._feed = self._gap
        return [*reasoning, *self._gap(rest)]

    def _gap(self, text: str) -> list[Part]:
        text = text.lstrip()
        if text:
            self._feed = self._after
        return [Text(text)]

    def _after(self, text: str) -> list[Part]:
        return [Text(text)]
