"""What a GGUF file says of itself: key/values and where its tensors lie, believed only after checking.

Source: the GGUF specification of ggml (docs/gguf.md), versions 2 and 3, little-endian.
"""

import mmap
import reprlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from model.checkpoints.contents import TensorInfo
from model.checkpoints.errors import CheckpointError
from model.quantization import Format

DENSE = {0: ("F32", 4), 1: ("F16", 2), 30: ("BF16", 2)}  # GGML type -> name, bytes of an element
PACKED = {
    2: Format.Q4_0,
    3: Format.Q4_1,
    6: Format.Q5_0,
    7: Format.Q5_1,
    8: Format.Q8_0,
    10: Format.Q2_K,
    11: Format.Q3_K,
    12: Format.Q4_K,
    13: Format.Q5_K,
    14: Format.Q6_K,
}
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?QqdX", strict=False))  # value type -> struct code
STRING, ARRAY = 8, 9
SMALLEST_ENTRY = 8 + 4 + 1  # bytes of a key of no length, its type and a one-byte value
SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # bytes of a nameless tensor of one dimension
MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: every tensor lies within the file, apart from the others."""

    metadata: dict[str, Any]
    infos: tuple[TensorInfo, ...]
    starts: tuple[int, ...]  # where each tensor's data begins, in bytes from the start of the file


def read_header(path: Path) -> Header:
    """Raises CheckpointError where the file is not a GGUF file that we can follow to its end."""
    with _mapped(path) as data:
        return _Reader(path, data).header()


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise CheckpointError(path, "the file is empty") from error


@dataclass(slots=True)
class _Reader:
    """A cursor over the mapped file. Every length is compared with what is left before it is used."""

    path: Path
    data: mmap.mmap
    at: int = 0

    def header(self) -> Header:
        tensor_count, entry_count = self._counts()
        metadata = self._metadata(entry_count)
        described = self._descriptions(tensor_count)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment % 8:
            raise self._refusal(f"general.alignment is {reprlib.repr(alignment)}, not a multiple of 8")
        base = -(-self.at // alignment) * alignment
        infos = tuple(info for info, _ in described)
        starts = tuple(base + offset for _, offset in described)
        for info, start in zip(infos, starts, strict=True):
            if start % alignment:
                raise self._refusal(f"tensor {reprlib.repr(info.name)} is not aligned to {alignment} bytes")
        self._check_places(sorted(zip(starts, infos, strict=True), key=lambda place: place[0]))
        return Header(metadata, infos, starts)

    def _counts(self) -> tuple[int, int]:
        if self.data[:4] != b"GGUF":
            raise self._refusal(f"not a GGUF file: it begins with {self.data[:4]!r}")
        self.at = 4
        version = self._scalar("I")
        if version in (2 << 24, 3 << 24):
            raise self._refusal("a big-endian GGUF file; convert it to little-endian")
        if version not in (2, 3):
            raise self._refusal(f"GGUF version {version}; versions 2 and 3 are supported")
        tensor_count, entry_count = self._scalar("Q"), self._scalar("Q")
        self._need(tensor_count * SMALLEST_TENSOR + entry_count * SMALLEST_ENTRY)
        return tensor_count, entry_count

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._string()
            if key in metadata:
                raise self._refusal(f"key {reprlib.repr(key)} appears twice")
            metadata[key] = self._value(key, self._scalar("I"))
        if metadata.get("split.count", 1) not in (0, 1):
            raise self._refusal(f"one of {metadata['split.count']} split files; merge them into one")
        return metadata

    def _value(self, key: str, value_type: int) -> Any:
        if value_type in SCALARS:
            return self._scalar(SCALARS[value_type])
        if value_type == STRING:
            return self._string()
        if value_type != ARRAY:
            raise self._refusal(f"key {reprlib.repr(key)} has unknown type {value_type}")
        item_type, count = self._scalar("I"), self._scalar("Q")
        if item_type == STRING:
            return self._strings(count)
        if item_type not in SCALARS:
            raise self._refusal(f"key {reprlib.repr(key)} is an array of type {item_type}; scalars and strings may be")
        return self._scalars(SCALARS[item_type], count)

    def _descriptions(self, count: int) -> list[tuple[TensorInfo, int]]:
        described: dict[str, tuple[TensorInfo, int]] = {}
        for _ in range(count):
            name = self._string()
            if name in described:
                raise self._refusal(f"tensor {reprlib.repr(name)} appears twice")
            rank = self._scalar("I")
            if not 1 <= rank <= MAX_DIMENSIONS:
                raise self._refusal(f"tensor {reprlib.repr(name)} has {rank} dimensions")
            shape = tuple(reversed(self._scalars("Q", rank)))  # GGUF lists the contiguous dimension first
            info = self._info(name, shape, self._scalar("I"))
            described[name] = info, self._scalar("Q")
        return list(described.values())

    def _info(self, name: str, shape: tuple[int, ...], tensor_type: int) -> TensorInfo:
        if 0 in shape:
            raise self._refusal(f"tensor {reprlib.repr(name)} has an empty dimension")
        if tensor_type in DENSE:
            dtype, size = DENSE[tensor_type]
            return TensorInfo(name, shape, dtype, prod(shape) * size)
        if tensor_type not in PACKED:
            known = ", ".join([dtype for dtype, _ in DENSE.values()] + [form.name for form in PACKED.values()])
            raise self._refusal(f"tensor {reprlib.repr(name)} has GGML type {tensor_type}; supported are {known}")
        form = PACKED[tensor_type]
        if len(shape) not in (2, 3) or shape[-1] % form.block_size:
            raise self._refusal(f"tensor {reprlib.repr(name)} of shape {shape} cannot be packed as {form.name}")
        return TensorInfo(name, shape, form.name, prod(shape[:-1]) * form.row_bytes(shape[-1]))

    def _check_places(self, places: list[tuple[int, TensorInfo]]) -> None:
        """`places` is sorted by where the data begins."""
        free, before = 0, ""
        for start, info in places:
            if start < free:
                raise self._refusal(f"tensors {reprlib.repr(before)} and {reprlib.repr(info.name)} overlap")
            free, before = start + info.nbytes, info.name
            if free > len(self.data):
                size = len(self.data)
                raise self._refusal(f"truncated: tensor {reprlib.repr(before)} ends at byte {free} of {size}")

    def _scalar(self, code: str) -> Any:
        return self._scalars(code, 1)[0]

    def _scalars(self, code: str, count: int) -> list[Any]:
        size = count * struct.calcsize(f"<{code}")
        self._need(size)
        values = struct.unpack_from(f"<{count}{code}", self.data, self.at)
        self.at += size
        return list(values)

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        """Written flat, since a vocabulary and its merges are 100,000 strings and more."""
        self._need(8 * count)
        data, at, size, strings = self.data, self.at, len(self.data), []
        try:
            for _ in range(count):
                start = at + 8
                at = start + int.from_bytes(data[at:start], "little")
                if at > size:  # also where the length itself was cut off: `start` is past the end then
                    raise self._truncation()
                strings.append(data[start:at].decode())
        except UnicodeDecodeError as error:
            raise self._refusal(f"the string at byte {start} is not UTF-8") from error
        self.at = at
        return strings

    def _need(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise self._truncation()

    def _truncation(self) -> CheckpointError:
        return self._refusal("truncated: the header goes on after the end of the file")

    def _refusal(self, reason: str) -> CheckpointError:
        return CheckpointError(self.path, reason)
