"""A forward pass recorded once and replayed without Python: the CPU's twin of a CUDA graph.

While recording, no operation runs: each is written down with the bytes of its arguments. The memory it will work in
comes from a pool that the tape keeps, so that the addresses stay valid; replaying the operations in their order uses
it just as recording did. What torch computes by itself is not written down, and its memory is gone when the tape is
replayed: there is no tape of such a pass (see `TorchWatch`).
"""

import ctypes
import math
import mmap
import weakref
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.kernels.cpu.library import POINTERS, Library, Operation, Operations

Call = tuple[str, bytes]  # an operation's name and the bytes of its arguments


_TOUCHED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)  # Linux: now, not in a request


class Pool:
    """Memory that is given again once nobody holds the tensor any more, and never back to the system."""

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else mmap.mmap(-1, size, flags=_TOUCHED)
        buffer = (ctypes.c_char * size).from_buffer(memory)  # lives as long as the tensor's storage
        weakref.finalize(buffer, free.append, memory)
        return torch.frombuffer(buffer, dtype=dtype).view(shape)


class TorchWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices whether torch computes anything, copies included; views of a tensor are none of that."""

    has_computed = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here. If torch had to know that, it would import its compiler: half a second, 90 MB."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.has_computed |= not func.is_view
        return func(*args, **(kwargs or {}))


class Recorder:
    """Operations that are written down in place of being run."""

    def __init__(self, operations: Operations) -> None:
        self.calls: list[Call] = []
        self.recorded = operations
        self.operations = Operations(*(self._recording(f.name) for f in fields(operations)))

    def _recording(self, name: str) -> Operation:
        return lambda arguments: self.calls.append((name, arguments))


class _Entry(ctypes.Structure):
    """As in `tape.cpp`."""

    _fields_ = (
        ("operation", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("num_pointers", ctypes.c_int64),
        ("rows_each", ctypes.c_int64),
    )


class Tape:
    """The recorded calls, for any number of rows up to the recorded one."""

    def __init__(
        self, recorder: Recorder, native: Library, pool: Pool, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        """`inputs` and `output` are what the recorded calls read and wrote; their first size is the rows."""
        self._native = native
        self._pool = pool  # its memory is where the calls work
        self._inputs = inputs
        self._output = output
        calls, operations = recorder.calls, recorder.recorded
        self._arguments = [ctypes.create_string_buffer(arguments, len(arguments)) for _, arguments in calls]
        entries = [self._entry(call, place, operations) for call, place in zip(calls, self._arguments, strict=True)]
        self._entries = (_Entry * len(entries))(*entries)

    def replay(self, inputs: tuple[Tensor, ...], spans: int, num_spans: int) -> Tensor:
        """The output of the recorded forward pass for these inputs; valid until the next replay."""
        rows = len(inputs[0])
        for place, given in zip(self._inputs, inputs, strict=True):
            place[:rows].copy_(given)
        self._native.replay(ctypes.addressof(self._entries), len(self._entries), rows, spans, num_spans)
        return self._output[:rows]

    def _entry(self, call: Call, place: "ctypes.Array[ctypes.c_char]", operations: Operations) -> _Entry:
        name, arguments = call
        pointers = POINTERS[name]
        length = int.from_bytes(arguments[8 * pointers : 8 * pointers + 8], "little")
        rows_each = 0 if name == "attention" else length // len(self._output)
        address = ctypes.cast(getattr(operations, name), ctypes.c_void_p).value
        return _Entry(address, ctypes.addressof(place), pointers, rows_each)
