"""A device's streams, faked on a CPU: what the host reads or writes too early, or waits for too often, fails.

Tensors are computed at once, as on any CPU. What makes them a card's is that nobody may look: every way in which the
host could ask for a number, but for waiting for a download, raises. A capture writes down what torch computes and what
Triton launches, with their very arguments, and a replay does the same again, as a CUDA graph would: numbers that the
host has changed since do not reach it, and what another graph has left is gone: they share their memory. While
capturing, the host must not look, wait, or bring anything of its own along.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.kernels.streams import Download, Streams

_LOOKS = {
    *(getattr(Tensor, name) for name in ("item", "tolist", "numpy", "cpu", "nonzero", "equal")),
    *(getattr(Tensor, f"__{name}__") for name in ("bool", "int", "float", "index")),
    *(torch.nonzero, torch.equal, torch.unique, torch.masked_select),
}


_NOT_WHILE_CAPTURING = {  # copies from the host, as of torch.tensor, and what has as many numbers as there happen to be
    torch.ops.aten.lift_fresh.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}


class HostSync(AssertionError):
    """The host asks for what the device may not have computed yet, or hands over what a capture cannot hold."""


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
    graphs: list["Graph"] = field(default_factory=list)
    is_capturing: bool = False
    peaks: list[int] = field(default_factory=list)  # as they were measured
    _uploads: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # the host's and as it was

    is_asynchronous = True

    def upload(self, host: Tensor, device: torch.device) -> Tensor:
        if self.is_capturing:
            raise HostSync("an upload while capturing")
        self._uploads.append((host, host.clone()))
        return host.clone()

    def peak(self, run: Callable[[], object]) -> int:
        with _Weighing() as weighing:
            run()
        self.peaks.append(weighing.most)
        return weighing.most

    def download(self, tensor: Tensor) -> Download:
        return _Arriving(self, tensor.clone())

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = Graph()
        self.is_capturing = True
        try:
            with graph.recording():
                run()
        finally:
            self.is_capturing = False
        self.graphs.append(graph)
        return partial(self._replay, graph)

    def _replay(self, graph: "Graph") -> None:
        for other in self.graphs:
            if other is not graph:
                other.spoil()
        graph.replay()

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
        if self.streams.is_capturing:
            raise HostSync("waited for while capturing")
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


class _Weighing(TorchDispatchMode):
    """How many bytes, of all that was made within, were held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._held: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _shares_memory(result, (args, kwargs)):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._held[StorageWeakRef(leaf.untyped_storage())] = leaf.untyped_storage().nbytes()
        self._held = {storage: size for storage, size in self._held.items() if not storage.expired()}
        self.most = max(self.most, sum(self._held.values()))
        return result


class Graph:
    """What was told to the device, to be told again."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.made: list[Tensor] = []  # by these calls

    @contextmanager
    def recording(self) -> Iterator[None]:
        import triton.runtime.interpreter as interpreter

        launch = interpreter.GridExecutor.__call__

        def record(executor: Any, *args: Any, **kwargs: Any) -> None:
            with torch._C._DisableTorchDispatch():  # what the interpreter does with torch is no call of ours
                launch(executor, *args, **kwargs)
            self.calls.append(lambda: launch(executor, *args, **kwargs))

        interpreter.GridExecutor.__call__ = record
        try:
            with _Recorder(self):
                yield
        finally:
            interpreter.GridExecutor.__call__ = launch

    def replay(self) -> None:
        for call in self.calls:
            call()

    def spoil(self) -> None:
        for tensor in self.made:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 1)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if func in _NOT_WHILE_CAPTURING or isinstance(result, bool | int | float):
            raise HostSync(f"{func} while capturing")
        if not (func.is_view and _shares_memory(result, args)):  # some give a view or a copy, as they need
            self.graph.calls.append(lambda: _again(func, args, given, result))
            if not _shares_memory(result, (args, kwargs)):
                self.graph.made += [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result


def _shares_memory(result: Any, args: Any) -> bool:
    made, given = (
        {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
        for tree in (result, args)
    )
    return made <= given


def _again(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Into the tensors that it made the first time; those it works in place on have the result already."""
    again = func(*args, **kwargs)
    results, agains = (value if isinstance(value, tuple | list) else [value] for value in (result, again))
    for place, new in zip(results, agains, strict=True):
        if isinstance(place, Tensor) and place is not new and not func._schema.is_mutable:
            place.copy_(new)
