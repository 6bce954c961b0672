"""Where the compiled kernels are and how they are called: `operations.h` in Python."""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from struct import Struct

LEVELS = ("avx512", "avx2", "neon", "portable")  # best first, as in `library.cpp`

Operation = Callable[[bytes], None]  # takes the bytes of its arguments

# The arguments of each operation as the bytes of its C structure: pointers, 64-bit integers, floats. Packing bytes
# takes a third of the time that filling a ctypes structure does.
linear_args = Struct("4P5q").pack  # x panels bias y, rows in out kind precision
embed_args = Struct("3P3q").pack  # ids panels y, rows columns kind
norm_args = Struct("4P2qf").pack  # x weight bias y, rows columns, eps
rotate_args = Struct("4P4q").pack  # x cos sin y, rows heads head_dim stride
activate_args = Struct("2P4q").pack  # x y, rows columns activation gated
store_args = Struct(
    "6P8q"
).pack  # k v keys values scales slots, rows groups head_dim block_size num_blocks k_stride v_stride type
attention_args = Struct("6P9q2f").pack  # q keys values scales out spans, num_spans heads groups head_dim block_size
#                                         num_blocks window q_stride type, scale softcap
add_args = Struct("3P2qf").pack  # x other y, rows columns, factor
argmax_args = Struct("2P2q").pack  # x y, rows columns

# How many lead the arguments; the number of rows comes next, or of spans.
POINTERS = {"linear": 4, "embed": 3, "rms_norm": 4, "layer_norm": 4, "rotate": 4, "activate": 2, "store": 6}
POINTERS |= {
    "attention": 6,
    "add": 3,
    "argmax": 2,
}  # how many lead the arguments; the number of rows or spans comes next


@dataclass(frozen=True, slots=True)
class Operations:
    """The table of one instruction-set level, in the order of `struct Operations`."""

    linear: Operation
    embed: Operation
    rms_norm: Operation
    layer_norm: Operation
    rotate: Operation
    activate: Operation
    store: Operation
    attention: Operation
    add: Operation
    argmax: Operation


_TABLE = ctypes.c_void_p * len(fields(Operations))
_OPERATION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Library:
    """The shared library that was built with the package."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.headrace_operations.restype = ctypes.POINTER(_TABLE)
        self._library.headrace_operations.argtypes = [ctypes.c_char_p]
        address, integer = ctypes.c_void_p, ctypes.c_int64
        self._library.headrace_replay.argtypes = [address, integer, integer, address, integer]

    def operations(self, level: str = "") -> Operations | None:
        """The operations of an instruction-set level, the best one by default; None if this processor lacks it."""
        table = self._library.headrace_operations(level.encode())
        return Operations(*(_OPERATION(address) for address in table.contents)) if table else None

    def best_level(self) -> str:
        return next(level for level in LEVELS if self.operations(level))

    def replay(self, entries: int, count: int, rows: int, spans: int, num_spans: int) -> None:
        """Runs the entries of a tape (see `tape.cpp`); addresses and numbers."""
        self._library.headrace_replay(entries, count, rows, spans, num_spans)

    def set_threads(self, threads: int) -> None:
        """How many threads share an operation from now on, the caller among them. Results do not depend on it."""
        self._library.headrace_set_threads(threads)


def find_library() -> Library | None:
    """The library, or None where the package was installed without a compiler."""
    spec = find_spec("model.kernels.cpu._native")  # found like a module, so editable installations work too
    return Library(spec.origin) if spec and spec.origin else None


def available_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
