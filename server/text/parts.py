"""What an answer consists of, in the order in which it comes: reasoning, text, calls of tools."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """What is said to the user; several in a row continue each other, as do the next two kinds."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """JSON text of the arguments of the call that began last."""

    place: int
    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool is called; its arguments follow. `place` counts the answer's calls from 0."""

    place: int
    id: str
    name: str


Part = Text | Reasoning | CallBegin | CallArguments


def join(parts: list[Part]) -> list[Part]:
    """The same without seams: what continues the part before it is one with it, and what is empty is left out."""
    joined: list[Part] = []
    for part in parts:
        match joined[-1] if joined else None, part:
            case _, Text("") | Reasoning("") | CallArguments(_, ""):
                pass
            case Text(before), Text(text):
                joined[-1] = Text(before + text)
            case Reasoning(before), Reasoning(text):
                joined[-1] = Reasoning(before + text)
            case CallArguments(place, before), CallArguments(_, text):
                joined[-1] = CallArguments(place, before + text)
            case _:
                joined.append(part)
    return joined
