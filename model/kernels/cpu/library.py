"""Where the compiled kernels are and how they are called: `operations.h` in ctypes."""

import ctypes
import os
from collections.abc import Callable
from ctypes import c_float, c_int64, c_void_p
from importlib.util import find_spec
from typing import Any

Operation = Callable[[Any], None]  # takes byref(arguments)


def _structure(name: str, fields: str, floats: str = "") -> type[ctypes.Structure]:
    """Fields are 64-bit integers, or pointers where the name starts with `*`, but for the trailing floats."""
    declared: list[tuple[str, Any]] = [
        (field.lstrip("*"), c_void_p if field.startswith("*") else c_int64) for field in fields.split()
    ]
    declared += [(field, c_float) for field in floats.split()]
    return type(name, (ctypes.Structure,), {"_fields_": declared})


LinearArgs = _structure("LinearArgs", "*x *panels *bias *y rows in_ out kind precision")
EmbedArgs = _structure("EmbedArgs", "*ids *panels *y rows columns kind")
NormArgs = _structure("NormArgs", "*x *weight *bias *y rows columns", "eps")
RotateArgs = _structure("RotateArgs", "*x *cos *sin *y rows heads head_dim stride")
ActivateArgs = _structure("ActivateArgs", "*x *y rows columns activation gated")
StoreArgs = _structure(
    "StoreArgs", "*k *v *keys *values *slots rows groups head_dim block_size k_stride v_stride is_half"
)
SpanArgs = _structure("SpanArgs", "*blocks first_row last_row start")
AttentionArgs = _structure(
    "AttentionArgs",
    "*q *keys *values *out *spans num_spans heads groups head_dim block_size window q_stride is_half",
    "scale softcap",
)

_OPERATIONS = ["linear", "embed", "rms_norm", "layer_norm", "rotate", "activate", "store", "attention"]
_OPERATION = ctypes.CFUNCTYPE(None, c_void_p)


class Operations(ctypes.Structure):
    """The table of one instruction-set level."""

    _fields_ = [(name, _OPERATION) for name in _OPERATIONS]
    linear: Operation
    embed: Operation
    rms_norm: Operation
    layer_norm: Operation
    rotate: Operation
    activate: Operation
    store: Operation
    attention: Operation


class Library:
    """The shared library that was built with the package."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.headrace_operations.restype = ctypes.POINTER(Operations)
        self._library.headrace_operations.argtypes = [ctypes.c_char_p]

    def operations(self, level: str = "") -> Operations | None:
        """The operations of an instruction-set level, the best one by default; None if this processor lacks it."""
        table = self._library.headrace_operations(level.encode())
        return table.contents if table else None

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
