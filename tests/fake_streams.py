"""A device's streams, faked on a CPU: what the host reads or writes too early, or waits for too often, fails.

Tensors are computed at once, as on any CPU. What makes them a card's is that nobody may look: every way in which the
host could ask for a number, but for waiting for a download, raises.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model.kernels.streams import Download, Streams

_LOOKS = {
    *(getattr(Tensor, name) for name in ("item", "tolist", "numpy", "cpu", "nonzero", "equal")),
    *(getattr(Tensor, f"__{name}__") for name in ("bool", "int", "float", "index")),
    *(torch.nonzero, torch.equal, torch.unique, torch.masked_select),
}


class HostSync(AssertionError):
    """The host asks for what the device may not have computed yet."""


class _Watch(TorchFunctionMode):
    def __init__(self, streams: "FakeStreams") -> None:
        super().__init__()
        self.streams = streams

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LOOKS and not self.streams.is_waiting:
            raise HostSync(f"{func} without waiting")
        return func(*args, **(kwargs or {}))


@dataclass
class FakeStreams(Streams):
    """As a card's, for tensors on the CPU."""

    waits: int = 0
    is_waiting: bool = False
    _uploads: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # the host's and as it was

    is_asynchronous = True

    def upload(self, host: Tensor, device: torch.device) -> Tensor:
        self._uploads.append((host, host.clone()))
        return host.clone()

    def download(self, tensor: Tensor) -> Download:
        return _Arriving(self, tensor.clone())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, the host must not look."""
        with _Watch(self):
            yield

    def settle(self) -> None:
        for host, before in self._uploads:
            assert torch.equal(host, before), "written to before it was copied"
        self._uploads.clear()


@dataclass
class _Arriving:
    streams: FakeStreams
    tensor: Tensor

    def wait(self) -> "_Host":
        self.streams.waits += 1
        self.streams.is_waiting = True
        self.streams.settle()
        numbers = self.tensor.tolist()
        self.streams.is_waiting = False
        return _Host(numbers)


@dataclass
class _Host:
    """On the host: anybody may look."""

    numbers: list[int]

    def tolist(self) -> list[int]:
        return self.numbers
