"""What the device records while nobody waits for it, and when that is told."""

import time
from collections.abc import Callable
from typing import Protocol

from server.engine.messages import Recorded


class Recorder(Protocol):
    """What records: `model.runner.Runner`."""

    def record_more(self) -> bool:
        """Records for one more size of steps; whether it has, and may again."""


class Recording:
    """One size after the other, between which orders are looked for."""

    def __init__(self, recorder: Recorder, tell: Callable[[Recorded], None]) -> None:
        self._recorder = recorder
        self._tell = tell
        self._sizes, self._seconds = 0, 0.0

    def go_on(self) -> bool:
        """Whether there may be more to record. Where there is none any more, that is told once."""
        start = time.monotonic()
        if self._recorder.record_more():
            self._sizes += 1
            self._seconds += time.monotonic() - start
            return True
        if self._sizes:
            self._tell(Recorded(self._sizes, self._seconds))
            self._sizes = 0
        return False
