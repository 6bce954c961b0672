"""Exchanges as lines of a file: written while they happen, read to be replayed."""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from server.logs import Log

_WAITING = 1024  # exchanges that a slow disk may be behind by

log = Log(__name__)


class RecordedChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What a choice told: the token that ended it shows in none of this."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[float] | None  # of the tokens, as the answer had them; None where it had none
    finish_reason: Literal["stop", "length"] | None


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One request that was taken on, and what came of it."""

    id: str
    path: str
    request: dict[str, Any]  # its fields, with the seed that was drawn where it named none
    receipt: str
    fingerprint: str
    prompts: list[list[int]]  # as the model saw them
    end: Literal["stop", "length", "error", "disconnect"]
    choices: list[RecordedChoice]  # in the order of their index
    completion_tokens: int  # of all choices, the tokens that ended them included

    @property
    def is_whole(self) -> bool:
        return self.end in ("stop", "length")


class Recorder:
    """Appends exchanges to a file, in a thread of its own: neither a slow disk nor a full one keeps a request.

    What the file does not take is counted, and logged once until it takes something again.
    """

    def __init__(self, path: Path, on_loss: Callable[[], None]) -> None:
        """Raises OSError where the file cannot be opened. It is for its owner alone, since it holds what users said."""
        self._path = path
        self._on_loss = on_loss
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._queue: queue.Queue[Exchange | None] = queue.Queue(_WAITING)
        self._is_torn = self._ends_within_a_line()
        self._is_failing = False
        self._thread = threading.Thread(target=self._write_all, name="recorder")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when all is written, as far as it can be."""
        self._queue.put(None)
        self._thread.join()
        os.close(self._file)

    def take(self, exchange: Exchange) -> None:
        """Returns at once."""
        try:
            self._queue.put_nowait(exchange)
        except queue.Full:
            self._lose("the disk is too slow")

    def _write_all(self) -> None:
        while (exchange := self._queue.get()) is not None:
            try:
                self._write(msgspec.json.encode(exchange) + b"\n")
            except (OSError, ValueError) as error:  # a full disk, a text that is no Unicode
                self._lose(str(error))
            else:
                self._is_failing = False

    def _write(self, line: bytes) -> None:
        left = memoryview(b"\n" + line if self._is_torn else line)
        while left:
            left = left[os.write(self._file, left) :]
            self._is_torn = bool(left)

    def _ends_within_a_line(self) -> bool:
        """The one before was cut off by a full disk or a lost machine: it must not swallow the next."""
        size = os.fstat(self._file).st_size
        return size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def _lose(self, reason: str) -> None:
        self._on_loss()
        if not self._is_failing:
            self._is_failing = True
            log.warning("exchanges are not recorded", file=self._path, reason=reason)


def read_exchanges(path: Path) -> Iterator[Exchange | None]:
    """Line by line; None for one that is no exchange, such as one that was cut off. Raises OSError."""
    decoder = msgspec.json.Decoder(Exchange)
    with path.open("rb") as file:
        for line in file:
            try:
                yield decoder.decode(line) if line.strip() else None
            except msgspec.MsgspecError:
                yield None
