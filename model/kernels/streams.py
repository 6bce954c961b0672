"""In which order a device copies and computes, and where the host has to wait for it."""

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

    def free_unused(self) -> None:
        """Gives back what is kept for later allocations."""


class CudaStreams(Streams):
    """Those of a card: everything is told to its current stream, in order, and done some time later."""

    is_asynchronous = True

    def upload(self, host: Tensor, device: torch.device) -> Tensor:
        return host.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned memory until it is copied

    def download(self, tensor: Tensor) -> Download:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return _Underway(host, copied)

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
