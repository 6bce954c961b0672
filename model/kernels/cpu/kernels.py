"""The operations of the forward pass in C++, for fp32 on a CPU."""

import ctypes
from ctypes import byref

import torch
from torch import Tensor

from model.kernels.cpu import library
from model.kernels.cpu.library import Library, Operations
from model.kernels.cpu.packing import Panels, pack, panel_bytes
from model.kernels.reference import AttentionShape, Kernels, LayerCache, Prepared, Span, Weight

PRECISIONS = {"int16": 0, "int8": 1}  # of activations against packed weights, per 32 values
ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3}
POSITIONS_AT_ONCE = 16  # attention takes whole vectors of this many positions
MAX_HEAD_DIM = 512


class CpuKernels(Kernels):
    """A row's result has the same bits whatever is computed beside it, and with any number of threads."""

    def __init__(self, native: Library, operations: Operations, activations: str = "int16") -> None:
        super().__init__(torch.device("cpu"), torch.float32)
        self.native = native
        self.operations = operations
        self.precision = PRECISIONS[activations]
        self._spans: list[Span] = []
        self._span_table: ctypes.Array[ctypes.Structure] = (library.SpanArgs * 0)()

    def prepare(self, weight: Weight) -> Prepared:
        return pack(weight)

    def prepared_bytes(self, shape: tuple[int, ...], dtype: str) -> int:
        return panel_bytes(shape, dtype) if len(shape) > 1 else super().prepared_bytes(shape, dtype)

    def embed(self, ids_T: Tensor, weight: Prepared) -> Tensor:
        assert isinstance(weight, Panels)
        ids_T = ids_T.contiguous()
        rows, columns = len(ids_T), weight.shape[1]
        y = torch.empty(rows, columns)
        args = library.EmbedArgs(ids_T.data_ptr(), weight.address, y.data_ptr(), rows, columns, weight.kind)
        self.operations.embed(byref(args))
        return y

    def linear(self, x_TD: Tensor, weight: Prepared, bias: Tensor | None = None) -> Tensor:
        assert isinstance(weight, Panels)
        x_TD = x_TD.contiguous()
        rows, (out, columns) = len(x_TD), weight.shape
        assert x_TD.shape[1] == columns, "x does not fit the matrix"
        y = torch.empty(rows, out)
        bias_at = None if bias is None else bias.data_ptr()
        args = library.LinearArgs(
            x_TD.data_ptr(), weight.address, bias_at, y.data_ptr(), rows, columns, out, weight.kind, self.precision
        )
        self.operations.linear(byref(args))
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        columns = x.shape[-1]
        y = torch.empty_like(x)
        args = library.NormArgs(x.data_ptr(), weight.data_ptr(), None, y.data_ptr(), x.numel() // columns, columns, eps)
        self.operations.rms_norm(byref(args))
        return y

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        x = x.contiguous()
        columns = x.shape[-1]
        y = torch.empty_like(x)
        bias_at = None if bias is None else bias.data_ptr()
        args = library.NormArgs(
            x.data_ptr(), weight.data_ptr(), bias_at, y.data_ptr(), x.numel() // columns, columns, eps
        )
        self.operations.layer_norm(byref(args))
        return y

    def rotate(self, x_THd: Tensor, cos_Td: Tensor, sin_Td: Tensor) -> Tensor:
        x_THd = _adjacent(x_THd)
        rows, heads, head_dim = x_THd.shape
        cos_Td, sin_Td = cos_Td.contiguous(), sin_Td.contiguous()
        y = torch.empty(rows, heads, head_dim)
        args = library.RotateArgs(
            x_THd.data_ptr(), cos_Td.data_ptr(), sin_Td.data_ptr(), y.data_ptr(), rows, heads, head_dim, x_THd.stride(0)
        )
        self.operations.rotate(byref(args))
        return y

    def store(self, k_TGd: Tensor, v_TGd: Tensor, cache: LayerCache, slots_T: Tensor) -> None:
        k_TGd, v_TGd, slots_T = _adjacent(k_TGd), _adjacent(v_TGd), slots_T.contiguous()
        rows, groups, head_dim = k_TGd.shape
        args = library.StoreArgs(
            k_TGd.data_ptr(), v_TGd.data_ptr(), cache.keys.data_ptr(), cache.values.data_ptr(), slots_T.data_ptr(),
            rows, groups, head_dim, cache.block_size, k_TGd.stride(0), v_TGd.stride(0), _is_half(cache),
        )  # fmt: skip
        self.operations.store(byref(args))

    def attention(self, q_THd: Tensor, cache: LayerCache, spans: list[Span], shape: AttentionShape) -> Tensor:
        rows, heads, head_dim = q_THd.shape
        if head_dim % 8 or head_dim > MAX_HEAD_DIM or cache.block_size % POSITIONS_AT_ONCE:
            return super().attention(q_THd, cache, spans, shape)
        q_THd = _adjacent(q_THd)
        out = torch.empty(rows, heads, head_dim)
        args = library.AttentionArgs(
            q_THd.data_ptr(), cache.keys.data_ptr(), cache.values.data_ptr(), out.data_ptr(), self._listed(spans),
            len(spans), heads, cache.keys.shape[1], head_dim, cache.block_size, shape.window or 0, q_THd.stride(0),
            _is_half(cache), shape.scale, shape.softcap or 0.0,
        )  # fmt: skip
        self.operations.attention(byref(args))
        return out

    def activate(self, x: Tensor, activation: str) -> Tensor:
        return self._activate(x.contiguous(), torch.empty(x.shape), activation, gated=False)

    def gate(self, gate_up_TF: Tensor, activation: str) -> Tensor:
        *leading, width = gate_up_TF.shape
        return self._activate(gate_up_TF.contiguous(), torch.empty(*leading, width // 2), activation, gated=True)

    def _activate(self, x: Tensor, y: Tensor, activation: str, gated: bool) -> Tensor:
        columns = y.shape[-1]
        args = library.ActivateArgs(
            x.data_ptr(), y.data_ptr(), y.numel() // columns, columns, ACTIVATIONS[activation], gated
        )
        self.operations.activate(byref(args))
        return y

    def _listed(self, spans: list[Span]) -> int:
        """Where the spans lie for the kernels. All layers of a step get the same ones, so the last list is kept."""
        if len(self._spans) != len(spans) or any(a is not b for a, b in zip(self._spans, spans, strict=True)):
            self._spans = list(spans)
            listed = [library.SpanArgs(s.blocks.data_ptr(), s.first_row, s.last_row, s.start) for s in spans]
            self._span_table = (library.SpanArgs * len(spans))(*listed)
        return ctypes.addressof(self._span_table)


def _adjacent(x_THd: Tensor) -> Tensor:
    """x with each row's numbers side by side; rows may lie apart, as slices of a wider product do."""
    _, heads, head_dim = x_THd.shape
    is_adjacent = x_THd.stride(2) == 1 and (heads == 1 or x_THd.stride(1) == head_dim)
    return x_THd if is_adjacent else x_THd.contiguous()


def _is_half(cache: LayerCache) -> bool:
    return cache.keys.dtype == torch.float16
