"""What the model may answer to a question, how it is asked, and what its log probabilities say."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["predicate", "choice", "score"]

_ASKED = {
    "predicate": "Is this true of the above? {instructions}\nAnswer with Yes or No only.",
    "choice": "{instructions}\nThe choices are:\n{labels}\nAnswer with one of the choices only.",
    "score": "{instructions}\nThe levels, from the lowest to the highest, are:\n{labels}\nAnswer with one level only.",
}


@dataclass(frozen=True, slots=True)
class Label:
    """One possible answer: the client's own value, and the text that the model would say."""

    value: str | bool
    text: str
    description: str | None = None


def labels_of(options: Iterable[tuple[str | bool, str | None]]) -> list[Label]:
    """Of values with their descriptions; none are those of a predicate. A boolean is said as in JSON, and a string
    that would read the same is quoted.
    """
    options = list(options)
    if not options:
        return [Label(True, "Yes"), Label(False, "No")]
    booleans = {str(value).lower() for value, _ in options if isinstance(value, bool)}
    return [Label(value, _said(value, booleans), description) for value, description in options]


def _said(value: str | bool, booleans: set[str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if value in booleans else value


def asked(kind: Kind, instructions: str, labels: list[Label]) -> str:
    """The question as the model reads it, below the input."""
    lines = (f"- {label.text}" + (f": {label.description}" if label.description else "") for label in labels)
    return _ASKED[kind].format(instructions=instructions, labels="\n".join(lines))


def probabilities(said: list[list[int]], logprobs: list[float]) -> list[float]:
    """How likely the model's answer begins with each label and with no longer one, if it does with any.

    `said` are the labels' tokens, `logprobs` those of all their tokens together. Where one label is the beginning of
    another, whatever begins with the longer one begins with both, and counts for the longer.
    """
    likeliest = max(logprobs)
    masses = [math.exp(logprob - likeliest) for logprob in logprobs]
    for place in sorted(range(len(said)), key=lambda place: -len(said[place])):
        tokens = said[place]
        longer = [
            masses[other]
            for other, others in enumerate(said)
            if len(others) > len(tokens) and others[: len(tokens)] == tokens
        ]
        masses[place] = max(masses[place] - math.fsum(longer), 0.0)
    total = math.fsum(masses)
    return [mass / total for mass in masses]


def answer(kind: Kind, name: str | None, labels: list[Label], shares: list[float]) -> dict[str, Any]:
    """In OpenAI's shape. A score is the mean of the levels' places, from 0 for the lowest."""
    if kind == "predicate":
        return {"type": kind, "name": name, "probability": shares[0]}
    confidence = max(shares)
    if kind == "choice":
        return {
            "type": kind,
            "name": name,
            "choice": labels[shares.index(confidence)].value,
            "confidence": confidence,
            "probabilities": [
                {"value": label.value, "probability": share} for label, share in zip(labels, shares, strict=True)
            ],
        }
    return {
        "type": kind,
        "name": name,
        "score": math.fsum(place * share for place, share in enumerate(shares)),
        "confidence": confidence,
        "probabilities": [
            {"label": label.value, "value": place, "probability": share}
            for place, (label, share) in enumerate(zip(labels, shares, strict=True))
        ],
    }
