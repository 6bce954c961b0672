"""How much memory this process holds now, and held at most."""

from pathlib import Path
from typing import Protocol

import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter(Protocol):
    meaning: str  # of its figures, as a sentence
    is_exact: bool  # they hold what is asked for and nothing else

    def now(self) -> int:
        """Bytes."""

    def peak(self) -> int:
        """The most since `forget_peak`."""

    def forget_peak(self) -> None: ...


class CardMeter:
    meaning = "Measured is what torch's allocator had given out."
    is_exact = True

    def now(self) -> int:
        return int(torch.cuda.memory_allocated())

    def peak(self) -> int:
        return int(torch.cuda.max_memory_allocated())

    def forget_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()


class HostMeter:
    """Of Linux (proc(5))."""

    meaning = "Measured is the process's resident memory, libraries and the file's pages included: no verdict on it."
    is_exact = False

    def now(self) -> int:
        return self._field("VmRSS")

    def peak(self) -> int:
        return self._field("VmHWM")

    def forget_peak(self) -> None:
        FORGET.write_text("5")

    def _field(self, name: str) -> int:
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields[name].split()[0]) * 1024


def meter_of(device: torch.device) -> Meter:
    return CardMeter() if device.type == "cuda" else HostMeter()
