"""What this machine can do at most, measured: the yardstick beside which the kernels' speeds are printed."""

import ctypes
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

STREAM_BYTES = 256 << 20  # several times the last-level cache
ROUNDS = 200_000
REPEATS = 60  # of about a millisecond each: shorter than the scheduler's patience


def best_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The shortest of several runs: others share the machine, and they only ever slow things down."""
    shortest = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - started)
    return shortest


@dataclass(frozen=True, slots=True)
class Peaks:
    """Clock in GHz; multiply-adds per cycle and core; bytes read in GB/s with one thread, two, ..."""

    clock_ghz: float
    fma: float
    maddubs: float
    stream_gbs: list[float]

    def __str__(self) -> str:
        streams = ", ".join(f"{rate:.1f} GB/s with {n}" for n, rate in enumerate(self.stream_gbs, 1))
        return (
            f"clock {self.clock_ghz:.2f} GHz; MAC/cycle and core: fp32 FMA {self.fma:.1f}, "
            f"vpmaddubsw {self.maddubs:.1f}; memory read {streams} threads"
        )


def measure(max_threads: int) -> Peaks:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peaks.so"
        source = Path(__file__).with_name("peaks.cpp")
        flags = ["-O2", "-std=c++17", "-mavx2", "-mfma", "-shared", "-fPIC"]
        subprocess.run(["c++", *flags, str(source), "-o", str(library)], check=True)
        return _measure(ctypes.CDLL(str(library)), max_threads)


def _measure(native: ctypes.CDLL, max_threads: int) -> Peaks:
    rounds = ctypes.c_int64(ROUNDS)
    cycles = 10 * ROUNDS / best_seconds(lambda: native.cycles_10(rounds))
    fma = 80 * ROUNDS / best_seconds(lambda: native.fma_80(rounds)) / cycles
    maddubs = 320 * ROUNDS / best_seconds(lambda: native.maddubs_320(rounds)) / cycles
    memory = torch.ones(STREAM_BYTES, dtype=torch.uint8)
    streams = [_stream(native, memory, threads) for threads in range(1, max_threads + 1)]
    return Peaks(cycles / 1e9, fma, maddubs, streams)


def _stream(native: ctypes.CDLL, memory: torch.Tensor, threads: int) -> float:
    part = STREAM_BYTES // threads // 256 * 256

    def read(index: int) -> None:
        native.read_all(ctypes.c_void_p(memory.data_ptr() + index * part), ctypes.c_int64(part))

    def all_read() -> None:
        readers = [threading.Thread(target=read, args=(index,)) for index in range(threads)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    return part * threads / best_seconds(all_read, 15) / 1e9
