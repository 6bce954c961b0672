"""A card, faked by tensors that have shapes, types and devices but no values, and fail where devices are mixed.

What it says of its choices is made up: all are 0. Triton launches nothing, on nothing that does not lie on the card.
While it is watched, nothing crosses but by its streams; while it captures, nothing at all.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import triton.runtime.interpreter as interpreter
from fake_streams import HostSync
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from model.kernels import Kernels
from model.kernels.drawing import Draws
from model.kernels.streams import Streams
from model.quantization import Format, PackedTensor
from model.runner import Runner

CUDA = torch.device("cuda", 0)


@dataclass(frozen=True, slots=True)
class AllWeights:
    """A checkpoint on the CPU that holds whatever is asked for: biases, query norms and rope divisors too."""

    is_packed: bool = False
    prefix: str = ""

    def below(self, name: str) -> "AllWeights":
        return self

    def __contains__(self, name: str) -> bool:
        return True

    def matrix(self, name: str, shape: tuple[int, int]) -> Tensor | PackedTensor:
        if not self.is_packed:
            return torch.empty(shape)
        data = torch.empty(shape[0], Format.Q8_0.row_bytes(shape[1]), dtype=torch.uint8)
        return PackedTensor(Format.Q8_0, shape, data)

    def vector(self, name: str, size: int) -> Tensor:
        return torch.empty(size)


class WithoutDriver(TorchFunctionMode):
    """Some of Tensor's methods ask for the device's driver, which torch for the CPU lacks: a fake CPU does these."""

    methods = (Tensor.__getitem__, Tensor.__setitem__, Tensor.contiguous, Tensor.copy_)
    is_at_work: ClassVar[bool] = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.methods:
            return func(*args, **(kwargs or {}))
        devices = {leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim()}
        if len(devices) > 1:
            raise RuntimeError(f"{func.__name__} found two different devices {devices}")
        WithoutDriver.is_at_work = True
        try:
            result = func(*tree_map_only(Tensor, lambda tensor: tensor.to("cpu"), args))
            return None if result is None else result.to(args[0].device)
        finally:
            WithoutDriver.is_at_work = False


def _launch(executor: Any, *args: Any, **kwargs: Any) -> None:
    devices = {given.device for given in (*args, *kwargs.values()) if isinstance(given, Tensor)}
    if devices != {CUDA}:
        raise RuntimeError(f"{executor.fn.__name__} found two different devices {devices}")


@contextmanager
def fake_card() -> Iterator[None]:
    launch = interpreter.GridExecutor.__call__
    interpreter.GridExecutor.__call__ = _launch  # type: ignore[method-assign]
    try:
        with FakeTensorMode(), WithoutDriver():
            yield
    finally:
        interpreter.GridExecutor.__call__ = launch  # type: ignore[method-assign]


@dataclass
class MadeUp(Streams):
    """A card's, but for what it says of its tensors."""

    is_asynchronous = True
    waits: int = 0
    captures: int = 0
    replays: int = 0
    is_capturing: bool = False
    is_uploading: bool = False

    def upload(self, host: Tensor, device: torch.device) -> Tensor:
        if self.is_capturing:
            raise HostSync("an upload while capturing")
        assert host.device.type == "cpu"
        self.is_uploading = True
        try:
            return host.to(device)
        finally:
            self.is_uploading = False

    def download(self, tensor: Tensor) -> "MadeUpChoices":
        assert (tensor.device, tensor.dtype) == (CUDA, torch.int64)
        return MadeUpChoices(self, len(tensor))

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        self.is_capturing = True
        try:
            with self.watched():
                run()
        finally:
            self.is_capturing = False
        return self._replay

    def _replay(self) -> None:
        self.replays += 1

    @contextmanager
    def watched(self) -> Iterator[None]:
        with _NothingCrosses(self):
            yield


@dataclass(frozen=True)
class MadeUpChoices:
    streams: MadeUp
    count: int

    def wait(self) -> Any:
        if self.streams.is_capturing:
            raise HostSync("waited for while capturing")
        self.streams.waits += 1
        return SimpleNamespace(tolist=lambda: [0] * self.count)


class _NothingCrosses(TorchDispatchMode):
    """Between host and card, but by `upload`: what torch copies from memory that is not pinned is waited for."""

    copies = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

    def __init__(self, streams: MadeUp) -> None:
        super().__init__()
        self.streams = streams

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)}
        is_ours = self.streams.is_uploading or WithoutDriver.is_at_work
        if func in self.copies and len(devices) > 1 and not is_ours:
            raise HostSync(f"{func} from one of {devices} to the other")
        return result


class CardKernels(Kernels):
    """They draw on the device, which the reference does not."""

    def draw(self, logits_SV: Tensor, draws: Draws, allowed_SV: Tensor | None = None) -> Tensor:
        assert {logits_SV.device, draws.seed.device, draws.temperature.device} == {CUDA}
        return logits_SV.argmax(-1)


class FakeRunner(Runner):
    """In inference mode, torch.tensor would make no fake."""

    _begin = inspect.unwrap(Runner._begin)
    _finish = inspect.unwrap(Runner._finish)
    record = inspect.unwrap(Runner.record)
    record_more = inspect.unwrap(Runner.record_more)
