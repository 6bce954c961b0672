"""What a prompt is made from: turns, tools, and what else the template is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Turn = dict[str, Any]  # as chat templates know it: role, content, and what belongs to the role


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    name: str
    schema: dict[str, Any]  # of its arguments, an object
    declared: dict[str, Any]  # as the client described it, which is what the model reads
    is_strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Contents are strings or lists of text parts; calls of tools have their arguments as objects."""

    turns: list[Turn]
    tools: list[Tool] = field(default_factory=list)
    variables: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    is_continued: bool = False  # the answer goes on with the last turn's text
    opens_answer: bool = True  # the prompt ends where the assistant begins to speak


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    ids: list[int]
    ending: str  # of the rendered text, as far as it can tell whether reasoning has begun
