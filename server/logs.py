"""How events become lines on stdout: one line an event, as text or as JSON, never a prompt above debug."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]


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
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


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
