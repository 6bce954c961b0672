"""A progress bar for whatever takes longer than a moment, on standard error."""

import sys

from tqdm import tqdm

from server.engine.messages import Progress


class ProgressBar:
    """One bar a stage. Without a terminal one line a stage, so that logs stay readable."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm[None] | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self.close()
            self._open(progress)
        if self._bar is not None:
            self._bar.total = progress.total or None
            self._bar.update(progress.done - self._bar.n)

    def close(self) -> None:
        self._stage = ""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _open(self, progress: Progress) -> None:
        self._stage = progress.stage
        if not sys.stderr.isatty():
            print(f"headrace: {progress.stage}", file=sys.stderr, flush=True)
            return
        self._bar = tqdm(
            desc=progress.stage, total=progress.total or None, unit="B", unit_scale=True, unit_divisor=1024, leave=False
        )
