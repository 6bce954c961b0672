"""Where two tellings of one answer part, and how near the choice was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Told:
    """A token of an answer, with what was said of its odds: natural logarithms, of the model's own distribution."""

    id: int
    logprob: float | None = None
    top: Mapping[int, float] = field(default_factory=dict)  # the likeliest tokens at its place


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two answers are not the same to the last bit; None stands for an answer that had ended."""

    position: int  # in the output, from 0
    expected: Told | None
    got: Told | None

    def gap(self) -> float | None:
        """How far apart the logits of the two tokens lie, where what was told lets it be known.

        Up to here both have the same text before them, so the difference of two log probabilities of one
        distribution is that of the logits. Where the tokens are equal, it is between what was told of this one.
        """
        if self.expected is None or self.got is None:
            return None
        if self.expected.id == self.got.id:
            return _distance(self.expected.logprob, self.got.logprob)
        for told in (self.expected, self.got):
            if (gap := _distance(told.top.get(self.expected.id), told.top.get(self.got.id))) is not None:
                return gap
        return None

    def __str__(self) -> str:
        names = ["the end" if told is None else f"token {told.id}" for told in (self.expected, self.got)]
        gap = self.gap()
        size = "unknown" if gap is None else f"{gap:.3g}"
        if self.expected is None or self.got is None:
            return f"position {self.position}: {names[1]} instead of {names[0]}"
        if self.expected.id == self.got.id:
            logprobs = f"{self.got.logprob} instead of {self.expected.logprob}"
            return f"position {self.position}: {names[0]} in both, logprob {logprobs}, logprob gap {size}"
        return f"position {self.position}: {names[1]} instead of {names[0]}, logit gap {size}"


def first_difference(expected: Sequence[Told], got: Sequence[Told]) -> Difference | None:
    """Token by token; log probabilities count where both have them, each of the likeliest that both name as well."""
    for position in range(max(len(expected), len(got))):
        ours = expected[position] if position < len(expected) else None
        theirs = got[position] if position < len(got) else None
        if ours is None or theirs is None or not _agree(ours, theirs):
            return Difference(position, ours, theirs)
    return None


def _agree(ours: Told, theirs: Told) -> bool:
    if ours.id != theirs.id:
        return False
    return None in (ours.logprob, theirs.logprob) or (ours.logprob, ours.top) == (theirs.logprob, theirs.top)


def _distance(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else abs(one - other)
