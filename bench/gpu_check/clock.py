"""How long the device takes for something, as a median of several times."""

import statistics
import time
from collections.abc import Callable

import torch

WARM_UP = 3
SCRATCH_BYTES = 512 << 20  # several times the second-level cache of any card


class Clock:
    """Of a CPU it measures the host's time, and clears no cache."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self._scratch = torch.empty(SCRATCH_BYTES if device.type == "cuda" else 0, dtype=torch.uint8, device=device)

    def of_kernel(self, work: Callable[[], object]) -> float:
        """Seconds of the device alone, which finds nothing in its second-level cache.

        While it clears that, the host gets ahead of it, so that the time to tell a kernel is not in the figure.
        """
        if self.device.type != "cuda":
            return self.of_step(work)
        for _ in range(WARM_UP):
            work()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2 * self.repeats)]
        pairs = list(zip(marks[::2], marks[1::2], strict=True))
        for begin, end in pairs:
            self._scratch.zero_()
            begin.record()
            work()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1000

    def of_step(self, work: Callable[[], object]) -> float:
        """Seconds from telling the device until it has done all of it, the host's own time included."""
        for _ in range(WARM_UP):
            work()
        return statistics.median(self._once(work) for _ in range(self.repeats))

    def _once(self, work: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
