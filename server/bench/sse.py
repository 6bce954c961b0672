"""How a stream of bytes becomes server-sent events, wherever the network cuts it.

The grammar is that of https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6.
"""

from dataclasses import dataclass, field

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name ("message" where the server gave none) and its data lines, joined by newlines."""

    name: bytes
    data: bytes


@dataclass(slots=True)
class EventParser:
    """Feed it bytes as they come; an event is returned by the call that brings its closing blank line."""

    _rest: bytes = b""  # a line whose end has not come
    _skips_newline: bool = False  # the last line ended in "\r": a "\n" that follows belongs to it
    _is_first_line: bool = True
    _name: bytes = b""
    _data: list[bytes] = field(default_factory=list)

    def feed(self, data: bytes) -> list[Event]:
        events = []
        for line in self._lines(data):
            if line:
                self._take(line)
                continue
            if self._data:
                events.append(Event(self._name or b"message", b"\n".join(self._data)))
            self._name, self._data = b"", []
        return events

    def _lines(self, data: bytes) -> list[bytes]:
        """The lines that are complete now; bytes split at \\n, \\r and \\r\\n, as the format wants."""
        if self._skips_newline and data:
            data = data.removeprefix(b"\n")
            self._skips_newline = False
        lines = (self._rest + data).splitlines(keepends=True)
        self._rest = lines.pop() if lines and not lines[-1].endswith((b"\n", b"\r")) else b""
        if lines and not self._rest:
            self._skips_newline = lines[-1].endswith(b"\r")
        if lines and self._is_first_line:
            lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
            self._is_first_line = False
        return [line.rstrip(b"\r\n") for line in lines]

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value
        # a comment (empty name), "id", "retry" and unknown fields say nothing about the answer
