"""How events become lines on stdout: one line an event, as text or as JSON, never a prompt above debug."""

import json
import logging
import os
import queue
import sys
import threading
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

MAX_WAITING = 10_000  # lines, some 3 MB
_FLUSH_S = 1.0


class Log:
    """Writes events with named values: `log.info("engine ready", device="cpu")`."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **values: object) -> None:
        self._write(logging.DEBUG, event, values)

    def info(self, event: str, **values: object) -> None:
        self._write(logging.INFO, event, values)

    def warning(self, event: str, **values: object) -> None:
        self._write(logging.WARNING, event, values)

    def error(self, event: str, **values: object) -> None:
        """With the traceback of the exception that is being handled, if one is."""
        self._logger.error(event, extra={"values": values}, exc_info=sys.exc_info()[0] is not None)

    def _write(self, level: int, event: str, values: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"values": values})


def configure(style: LogFormat, level: str) -> None:
    """Sends every logger of the process to stdout, libraries' too. `level` is a name such as "info"."""
    # Where the process was started without one, some socket may have its number.
    stdout = os.open(os.devnull, os.O_WRONLY) if sys.stdout is None else sys.stdout.fileno()
    handler = LineWriter(stdout)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class LineWriter(logging.Handler):
    """Writes from a thread of its own, so that a reader who stalls or has left costs lines and stops nobody."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self._file = file
        self._lines: queue.Queue[bytes] = queue.Queue(MAX_WAITING)
        self._refused = 0
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self._line(record))
        except queue.Full:
            self._refused += 1

    def flush(self) -> None:
        """Waits a moment for what is on its way; called when the process ends, which no reader may prevent."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, _FLUSH_S)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _write_all(self) -> None:
        failed = told = 0
        while True:
            line = self._lines.get()
            lost = self._refused + failed - told
            try:
                if lost:
                    _write(self._file, self._line(_loss(lost)))
                    told += lost
                _write(self._file, line)
            except OSError:  # nobody reads any more, or the disk is full
                failed += 1
            self._lines.task_done()


def _write(file: int, line: bytes) -> None:
    while line:
        line = line[os.write(file, line) :]


def _loss(lines: int) -> logging.LogRecord:
    values = {"name": __name__, "levelname": "WARNING", "msg": "log lines lost", "values": {"lines": lines}}
    return logging.makeLogRecord(values)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": record.getMessage(),
        **getattr(record, "values", {}),
    }
    if record.exc_info:
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    return fields


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record), default=str)  # ASCII only: no control character gets through


class TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        head = f"{fields.pop('time')} {fields.pop('level'):7} {fields.pop('logger')}: {_plain(fields.pop('event'))}"
        return " ".join([head, *(f"{key}={_quoted(value)}" for key, value in fields.items())])


def _plain(value: object) -> str:
    """Keeps a line one line, and a terminal as it is: what does not print is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def _quoted(value: object) -> str:
    text = str(value)
    bare = text.isprintable() and text and not any(char in ' "=' for char in text)
    return text if bare else '"' + _plain(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'
