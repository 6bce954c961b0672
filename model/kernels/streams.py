"""In which order a device copies and computes, and where the host has to wait for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Download(Protocol):
    """A tensor on its way to the host."""

    def wait(self) -> Tensor:
        """The tensor on the host, once it is there: the only place where the host waits."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """One that is there already."""

    tensor: Tensor

    def wait(self) -> Tensor:
        return self.tensor


class Streams:
    """Those of a device that has done what it is told when the call returns, as a processor has."""

    is_asynchronous = False

    def upload(self, host: Tensor, device: torch.device) -> Tensor:
        """The same on the device, before anything that is told later. Nobody may write to `host` any more."""
        return host.to(device)

    def download(self, tensor: Tensor) -> Download:
        """As it is when all that was told before is done."""
        return Arrived(tensor.cpu())

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """What does again what `run` tells the device, on the same tensors; nothing is computed meanwhile.

        `run` has run before, and all captures share the memory that they allocate: what one leaves there, the next
        to be replayed may overwrite.
        """
        raise NotImplementedError("what is told to a processor is computed at once")

    def peak(self, run: Callable[[], object]) -> int:
        """Bytes that the device sets aside for `run`, beyond what it had before; 0 where nobody counts."""
        run()
        return 0

    def free_unused(self) -> None:
        """Gives back what is kept for later allocations."""


class CudaStreams(Streams):
    """Those of a card: everything is told to its current stream, in order, and done some time later."""

    is_asynchronous = True

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # what the captures share
        self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # the default one cannot be captured

    def upload(self, host: Tensor, device: torch.device) -> Tensor:
        return host.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned memory until it is copied

    def download(self, tensor: Tensor) -> Download:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return _Underway(host, copied)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._aside):  # `torch.cuda.graph` would also give back what steps have allocated
            graph.capture_begin(self._pool, "thread_local")  # others may allocate: an adapter is read in a thread
            try:
                run()
            finally:
                graph.capture_end()
        return graph.replay

    def peak(self, run: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        self.free_unused()
        before = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_reserved() - before

    def free_unused(self) -> None:
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class _Underway:
    host: Tensor
    copied: torch.cuda.Event

    def wait(self) -> Tensor:
        self.copied.synchronize()
        return self.host


def streams_of(device: torch.device) -> Streams:
    return CudaStreams() if device.type == "cuda" and torch.cuda.is_available() else Streams()
