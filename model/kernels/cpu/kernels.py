"""The operations of the forward pass in C++, for fp32 on a CPU."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.kernels.cpu import library
from model.kernels.cpu.arena import Arena
from model.kernels.cpu.library import Library, Operations
from model.kernels.cpu.packing import Panels, pack, panel_bytes
from model.kernels.cpu.tape import Pool, Recorder, Tape, TorchWatch
from model.kernels.reference import (
    AttentionShape,
    Example,
    Forward,
    Kernels,
    LayerCache,
    Prepared,
    Recording,
    Span,
    Weight,
)

PRECISIONS = {"int16": 0, "int8": 1}  # of activations against packed weights, per 32 values
CACHE_TYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2, torch.int16: 3}
ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3}
POSITIONS_AT_ONCE = 16  # attention takes whole vectors of this many positions
MAX_HEAD_DIM = 512


class CpuKernels(Kernels):
    """A row's result has the same bits whatever is computed beside it, and with any number of threads."""

    def __init__(self, native: Library, level: str, operations: Operations, activations: str = "int16") -> None:
        super().__init__(torch.device("cpu"), torch.float32)
        self.native = native
        self.level = level
        self.name = f"{level}-{activations}+{self.name}"  # torch computes what is left to it, such as log probabilities
        self.is_exact = True
        self.kv_dtype = torch.int16  # half of fp32's bytes; on the default model it costs a KL of 1e-7
        self.operations = operations
        self.precision = PRECISIONS[activations]
        self.arena = Arena()
        self._empty: Callable[..., Tensor] = torch.empty
        self._spans: list[Span] = []
        self._span_table = array("q")

    def prepare(self, weight: Weight) -> Prepared:
        panels = pack(weight)
        return Panels(panels.kind, panels.shape, self.arena.place(panels.data))

    def prepared_bytes(self, shape: tuple[int, ...], dtype: str) -> int:
        return panel_bytes(shape, dtype) if len(shape) > 1 else super().prepared_bytes(shape, dtype)

    def embed(self, ids_T: Tensor, weight: Prepared) -> Tensor:
        assert isinstance(weight, Panels)
        ids_T = ids_T.contiguous()
        rows, columns = ids_T.shape[0], weight.shape[1]
        y = self._empty(rows, columns)
        self.operations.embed(
            library.embed_args(ids_T.data_ptr(), weight.address, y.data_ptr(), rows, columns, weight.kind)
        )
        return y

    def linear(self, x_TD: Tensor, weight: Prepared, bias: Tensor | None = None) -> Tensor:
        assert isinstance(weight, Panels)
        x_TD = x_TD.contiguous()
        rows, columns = x_TD.shape
        out = weight.shape[0]
        assert columns == weight.shape[1], "x does not fit the matrix"
        y = self._empty(rows, out)
        self.operations.linear(
            library.linear_args(
                x_TD.data_ptr(), weight.address, _address(bias), y.data_ptr(),
                rows, columns, out, weight.kind, self.precision,
            )
        )  # fmt: skip
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._normalize(self.operations.rms_norm, x, weight, None, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        return self._normalize(self.operations.layer_norm, x, weight, bias, eps)

    def _normalize(
        self, operation: library.Operation, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> Tensor:
        x = x.contiguous()
        columns = x.shape[-1]
        y = self._empty(*x.shape)
        operation(
            library.norm_args(
                x.data_ptr(), weight.data_ptr(), _address(bias), y.data_ptr(), x.numel() // columns, columns, eps
            )
        )
        return y

    def add(self, x_TD: Tensor, y_TD: Tensor) -> Tensor:
        return self._add(x_TD, y_TD, 1.0)

    def scale(self, x_TD: Tensor, factor: float) -> Tensor:
        return self._add(x_TD, None, factor)

    def _add(self, x: Tensor, other: Tensor | None, factor: float) -> Tensor:
        x, other = x.contiguous(), other if other is None else other.contiguous()
        rows, columns = x.shape
        y = self._empty(rows, columns)
        self.operations.add(library.add_args(x.data_ptr(), _address(other), y.data_ptr(), rows, columns, factor))
        return y

    def rotate(self, x_THd: Tensor, cos_Td: Tensor, sin_Td: Tensor) -> Tensor:
        x_THd, cos_Td, sin_Td = _adjacent(x_THd), cos_Td.contiguous(), sin_Td.contiguous()
        rows, heads, head_dim = x_THd.shape
        y = self._empty(rows, heads, head_dim)
        self.operations.rotate(
            library.rotate_args(
                x_THd.data_ptr(), cos_Td.data_ptr(), sin_Td.data_ptr(), y.data_ptr(),
                rows, heads, head_dim, x_THd.stride(0),
            )
        )  # fmt: skip
        return y

    def store(self, k_TGd: Tensor, v_TGd: Tensor, cache: LayerCache, slots_T: Tensor) -> None:
        keys, values = cache.keys, cache.values
        if keys.dtype not in CACHE_TYPES:
            super().store(k_TGd, v_TGd, cache, slots_T)
            return
        k_TGd, v_TGd, slots_T = _adjacent(k_TGd), _adjacent(v_TGd), slots_T.contiguous()
        rows, groups, head_dim = k_TGd.shape
        self.operations.store(
            library.store_args(
                k_TGd.data_ptr(), v_TGd.data_ptr(), keys.data_ptr(), values.data_ptr(), _address(cache.scales),
                slots_T.data_ptr(), rows, groups, head_dim, keys.shape[3], len(keys),
                k_TGd.stride(0), v_TGd.stride(0), CACHE_TYPES[keys.dtype],
            )
        )  # fmt: skip

    def attention(self, q_THd: Tensor, cache: LayerCache, spans: list[Span], shape: AttentionShape) -> Tensor:
        rows, heads, head_dim = q_THd.shape
        keys = cache.keys
        _, groups, _, block_size = keys.shape
        is_taken = keys.dtype in CACHE_TYPES and block_size % POSITIONS_AT_ONCE == 0
        if head_dim % 8 or head_dim > MAX_HEAD_DIM or not is_taken:
            return super().attention(q_THd, cache, _row_by_row(spans), shape)
        q_THd = _adjacent(q_THd)
        out = self._empty(rows, heads, head_dim)
        self.operations.attention(
            library.attention_args(
                q_THd.data_ptr(), keys.data_ptr(), cache.values.data_ptr(), _address(cache.scales), out.data_ptr(),
                self._listed(spans), len(spans), heads, groups, head_dim, block_size, len(keys), shape.window or 0,
                q_THd.stride(0), CACHE_TYPES[keys.dtype], shape.scale, shape.softcap or 0.0,
            )
        )  # fmt: skip
        return out

    def activate(self, x: Tensor, activation: str) -> Tensor:
        return self._activate(x.contiguous(), self._empty(*x.shape), activation, gated=False)

    def gate(self, gate_up_TF: Tensor, activation: str) -> Tensor:
        *leading, width = gate_up_TF.shape
        return self._activate(gate_up_TF.contiguous(), self._empty(*leading, width // 2), activation, gated=True)

    def _activate(self, x: Tensor, y: Tensor, activation: str, gated: bool) -> Tensor:
        columns = y.shape[-1]
        rows = y.numel() // columns
        self.operations.activate(
            library.activate_args(x.data_ptr(), y.data_ptr(), rows, columns, ACTIVATIONS[activation], gated)
        )
        return y

    def argmax(self, logits_TV: Tensor) -> Tensor:
        logits_TV = logits_TV.contiguous()
        rows, columns = logits_TV.shape
        best_T = torch.empty(rows, dtype=torch.int64)
        self.operations.argmax(library.argmax_args(logits_TV.data_ptr(), best_T.data_ptr(), rows, columns))
        return best_T

    def record(self, forward: Forward, example: Example, most_rows: int, context_length: int) -> Recording | None:
        pool, recorder = Pool(), Recorder(self.operations)
        inputs, spans = example(most_rows)
        places = tuple(pool.empty(*tensor.shape, dtype=tensor.dtype).copy_(tensor) for tensor in inputs)
        self._empty, self.operations = pool.empty, recorder.operations
        try:
            with TorchWatch() as watch:  # type: ignore[no-untyped-call]
                output = forward(places, spans)
        finally:
            self._empty, self.operations = torch.empty, recorder.recorded
        if watch.has_computed:
            return None
        return _Recorded(Tape(recorder, self.native, pool, places, output), self._listed, most_rows)

    def _listed(self, spans: list[Span]) -> int:
        """Where the spans lie for the kernels. All layers of a step get the same ones, so the last list is kept."""
        if len(self._spans) != len(spans) or any(a is not b for a, b in zip(self._spans, spans, strict=True)):
            self._spans = list(spans)
            rows = [(span.blocks.data_ptr(), span.first_row, span.last_row, span.start) for span in spans]
            self._span_table = array("q", [number for row in rows for number in row])
        return self._span_table.buffer_info()[0]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A tape takes any number of rows up to the recorded one."""

    tape: Tape
    listed: Callable[[list[Span]], int]
    most_rows: int

    def padded(self, rows: int, context: int) -> int | None:
        return rows if rows <= self.most_rows else None

    def replay(self, inputs: tuple[Tensor, ...], spans: list[Span]) -> Tensor:
        return self.tape.replay(inputs, self.listed(spans), len(spans))

    def extend(self) -> bool:
        return False


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _row_by_row(spans: list[Span]) -> list[Span]:
    """Each row as a chunk of its own: what torch then computes of it has a shape that only its position decides."""
    return [
        Span(row, row + 1, span.start + row - span.first_row, span.blocks)
        for span in spans
        for row in range(span.first_row, span.last_row)
    ]


def _adjacent(x_THd: Tensor) -> Tensor:
    """x with each row's numbers side by side; rows may lie apart, as slices of a wider product do."""
    if x_THd.is_contiguous():
        return x_THd
    _, heads, head_dim = x_THd.shape
    is_adjacent = x_THd.stride(2) == 1 and (heads == 1 or x_THd.stride(1) == head_dim)
    return x_THd if is_adjacent else x_THd.contiguous()
