"""Where in an answer tools are called, and with which arguments, while it grows."""

import re
import secrets
import string
from collections.abc import Callable, Collection

from server.text.call_syntax import CallSyntax, json_of_keywords
from server.text.markers import Edges, MarkerFinder
from server.text.parts import CallArguments, CallBegin, Part, Text, join

WINDOW = 256  # characters around the arguments that are looked at together
_SLICE = 4096  # characters taken at a time: what follows a mark is copied, and calls may be many
_CLOSERS = " \t\r\n}"  # what of a tail may stand before its closing mark

_JSON_STRUCTURE = re.compile(r'["\\{}\[\]]')
_PYTHON_STRUCTURE = re.compile(r"""["'\\{}\[\]()]""")


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def new_short_call_id() -> str:
    """Nine letters and digits, which is what Mistral's templates ask for."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class Brackets:
    """Follows brackets and strings up to where the outermost bracket closes."""

    def __init__(self, *, is_python: bool) -> None:
        self._structure = _PYTHON_STRUCTURE if is_python else _JSON_STRUCTURE
        self._depth = int(is_python)  # the head of a pythonic call has the opening bracket
        self._quote = ""
        self._skipped = 0  # of what follows, so many characters are escaped

    def feed(self, text: str) -> int | None:
        """How many characters it takes to the end, the last bracket included; None if the end is not there yet."""
        start = self._skipped
        self._skipped = 0
        for found in self._structure.finditer(text, start):
            if found.start() < start:
                continue
            char = found[0]
            if char == "\\":
                start = found.start() + 2
            elif self._quote:
                self._quote = "" if char == self._quote else self._quote
            elif char in "\"'":
                self._quote = char
            else:
                self._depth += 1 if char in "{[(" else -1
                if self._depth == 0:
                    return found.end()
        self._skipped = max(0, start - len(text))
        return None


class CallParser:
    """Takes calls out of an answer. `feed` and `end` give all of the text that is part of no call, in linear time;
    only white space beside calls is dropped.

    A call begins once its name is known to be one of `names`; what looks like a call of anything else is text.
    """

    def __init__(self, syntax: CallSyntax, names: Collection[str], new_id: Callable[[], str]) -> None:
        self._syntax, self._names, self._new_id = syntax, frozenset(names), new_id
        self._finder = MarkerFinder(syntax.opening)
        self._edges = Edges(is_started=True)
        self._opening = ""  # what stands before the window, and is text if this is no call
        self._window = ""  # around the arguments: what may become a head or a tail
        self._brackets = Brackets(is_python=syntax.is_python)
        self._source: list[str] = []  # of a pythonic call, which is told when it is whole
        self._name = ""
        self._calls = 0
        self._parts: list[Part] = []
        self._in_words = self._until_opening if syntax.opening else self._to_the_end
        self._state = self._until_opening if syntax.opening else self._at_start

    @property
    def has_called(self) -> bool:
        """Whether the answer so far calls tools, the last of them with all of its arguments."""
        return self._calls > 0 and self._state != self._in_arguments

    def feed(self, text: str) -> list[Part]:
        for start in range(0, len(text), _SLICE):
            rest = text[start : start + _SLICE]
            while rest:
                rest = self._state(rest)
        return self._take()

    def end(self) -> list[Part]:
        self._say(self._finder.flush())
        if self._state == self._in_head:
            self._say(self._opening + self._window)
        if self._state == self._in_tail and not self._syntax.closing.startswith(self._window.lstrip(_CLOSERS)):
            self._say(self._window)
        if self._state == self._in_arguments:
            self._say("".join(self._source))
        if self._calls == 0:
            self._parts.append(Text(self._edges.flush()))
        return self._take()

    # Each state takes a text and gives back what of it is left for the next.

    def _at_start(self, text: str) -> str:
        begun = text.lstrip()
        self._say(text[: len(text) - len(begun)])
        if begun:
            self._state = self._in_head if begun.startswith(self._syntax.first) else self._in_words
        return begun

    def _to_the_end(self, text: str) -> str:
        self._say(text)
        return ""

    def _until_opening(self, text: str) -> str:
        before, after = self._finder.feed(text)
        self._say(before)
        if after is None:
            return ""
        self._opening, self._state = self._syntax.opening, self._in_head
        return after

    def _in_head(self, text: str) -> str:
        text = self._look(text)
        head = self._syntax.head.match(self._window)
        if head is None and len(self._window) < WINDOW:
            return text
        window, self._window = self._window, ""
        if head is None or head["name"] not in self._names:
            self._say(self._opening)
            self._state = self._in_words
            return window + text
        self._name = head["name"]
        self._brackets = Brackets(is_python=self._syntax.is_python)
        if self._syntax.is_python:
            self._source = [window[: head.end()]]
        else:
            self._begin_call()
        self._state = self._in_arguments
        return window[head.end() :] + text

    def _in_arguments(self, text: str) -> str:
        end = self._brackets.feed(text)
        if self._syntax.is_python:
            self._source.append(text[:end])
        else:
            self._parts.append(CallArguments(self._calls - 1, text[:end]))
        if end is None:
            return ""
        self._state = self._in_tail
        if self._syntax.is_python:
            self._tell_pythonic()
        return text[end:]

    def _in_tail(self, text: str) -> str:
        text = self._look(text)
        tail = self._syntax.tail.match(self._window)
        if tail is None and len(self._window) < WINDOW:
            return text
        window, self._window = self._window, ""
        self._state = self._in_words
        if tail is None:
            return window + text
        if tail.groupdict().get("more"):
            self._opening, self._state = "", self._in_head
        return window[tail.end() :] + text

    def _look(self, text: str) -> str:
        room = WINDOW - len(self._window)
        self._window += text[:room]
        return text[room:]

    def _tell_pythonic(self) -> None:
        head, *source = self._source
        self._source = []
        arguments = json_of_keywords("".join(source)[:-1])
        if arguments is None:
            self._say(head + "".join(source))
            self._state = self._in_words
            return
        self._begin_call()
        self._parts.append(CallArguments(self._calls - 1, arguments))

    def _begin_call(self) -> None:
        self._edges = Edges(is_started=True)  # without the white space before the call
        self._parts.append(CallBegin(self._calls, self._new_id(), self._name))
        self._calls += 1

    def _say(self, text: str) -> None:
        self._parts.append(Text(self._edges.feed(text)))

    def _take(self) -> list[Part]:
        parts, self._parts = join(self._parts), []
        return parts
