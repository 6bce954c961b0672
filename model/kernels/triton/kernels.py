"""The operations of the forward pass in Triton, for GPUs."""

from collections.abc import Sequence
from typing import cast

import torch
import triton
from torch import Tensor

from model.kernels.drawing import Draw, Draws
from model.kernels.reference import (
    Angles,
    AttentionShape,
    Example,
    Forward,
    Kernels,
    LayerCache,
    Prepared,
    Recording,
    Span,
    Weight,
    limit_of,
)
from model.kernels.triton import attention, drawing, matmul, rows
from model.kernels.triton.graphs import Frame, Graphs
from model.kernels.triton.layout import Layout, lay_out, splits_of
from model.kernels.triton.packing import DENSE, Packed, Stack, concatenated, pack, packed_bytes
from model.quantization import PackedMatrix

MANY_ROWS = 256  # from so many on, tiles are wide and packed weights are unpacked first: faster, with the same bits
NUMBERS = 1024  # of a program that takes numbers one by one


class TritonKernels(Kernels):
    """A row's result has the same bits whatever is computed beside it: no sum's order depends on the batch."""

    def __init__(self, device: torch.device, dtype: torch.dtype, many_rows: int = MANY_ROWS) -> None:
        """`many_rows` changes no bit: what it should be on a card is for that card to tell."""
        super().__init__(device, dtype)
        self.many_rows = many_rows
        self.name = f"triton-{triton.__version__}+{self.name}"
        self.is_exact = True
        self.are_keys_in_rows = True  # what is read at once is then as long as a head
        self._layout: tuple[int, Layout] | None = None  # of the last step, and how many rows a tile has
        self.frame: Frame | None = None  # where the layout has to lie while a graph is captured

    def record(self, forward: Forward, example: Example, most_rows: int, context_length: int) -> Recording | None:
        return Graphs(self, forward, example, most_rows, context_length) if self.streams.is_asynchronous else None

    def prepare(self, weight: Weight) -> Prepared:
        packed = pack(weight, self.device) if isinstance(weight, PackedMatrix) else None
        return super().prepare(weight) if packed is None else packed

    def prepared_bytes(self, shape: tuple[int, ...], dtype: str) -> int:
        packed = packed_bytes(shape, dtype)
        return super().prepared_bytes(shape, dtype) if packed is None else packed

    def attention_bytes(self, rows: int, heads: int, head_dim: int, context_length: int) -> int:
        splits = splits_of(context_length)
        return rows * heads * splits * (head_dim + 2) * torch.float32.itemsize if splits > 1 else 0

    def embed(self, ids_T: Tensor, weight: Prepared) -> Tensor:
        if not isinstance(weight, Packed):
            return super().embed(ids_T, weight)
        columns = weight.shape[1]
        y_TD = self._empty(len(ids_T), columns)
        grid = (len(ids_T), triton.cdiv(columns, NUMBERS))
        matmul.embed[grid](ids_T, *weight.parts, y_TD, columns, COLUMNS=NUMBERS, **weight.packing)
        return y_TD

    def linear(self, x_TD: Tensor, weight: Prepared, bias: Tensor | None = None) -> Tensor:
        assert isinstance(weight, Packed | Tensor)
        x_TD, has_many = x_TD.contiguous(), len(x_TD) >= self.many_rows
        if has_many and isinstance(weight, Packed):
            weight = self.unpack(weight)
        (num_rows, columns), out = x_TD.shape, weight.shape[0]
        y, tiles = self._empty(num_rows, out), matmul.MANY if has_many else matmul.FEW
        parts, packing = _parts(weight)
        grid = (triton.cdiv(out, tiles["TILE_OUT"]), triton.cdiv(num_rows, matmul.TILE_ROWS))
        matmul.product[grid](
            x_TD, *parts, bias, y, num_rows, columns, out,
            HAS_BIAS=bias is not None, TILE_ROWS=matmul.TILE_ROWS, TILE_COLUMNS=matmul.TILE_COLUMNS, **packing, **tiles,
        )  # fmt: skip
        return y

    def stack(self, weights: Sequence[Prepared]) -> Prepared:
        packed = [weight for weight in weights if isinstance(weight, Packed)]
        if len(packed) == len(weights) and len({weight.form for weight in packed}) == 1:
            return Stack(len(packed), concatenated(packed))
        dense = [self.unpack(weight) if isinstance(weight, Packed) else cast(Tensor, weight) for weight in weights]
        return Stack(len(dense), torch.cat(dense))

    def linear_of_each(self, x_TD: Tensor, chosen_T: Tensor, stack: Prepared) -> Tensor:
        assert isinstance(stack, Stack)
        x_TD, (num_rows, columns) = x_TD.contiguous(), x_TD.shape
        out, order_T = stack.matrix.shape[0] // stack.count, torch.argsort(chosen_T, stable=True)
        counts = (chosen_T[:, None] == torch.arange(stack.count, device=self.device)).sum(0)
        y = self._empty(num_rows, out)
        parts, packing = _parts(stack.matrix)
        most_tiles = min(num_rows, num_rows // matmul.TILE_ROWS + stack.count)
        matmul.product_of_each[(triton.cdiv(out, matmul.FEW["TILE_OUT"]), most_tiles)](
            x_TD, *parts, order_T, counts, y, columns, out, stack.count, MATRICES=triton.next_power_of_2(stack.count),
            TILE_ROWS=matmul.TILE_ROWS, TILE_COLUMNS=matmul.TILE_COLUMNS, **packing, **matmul.FEW,
        )  # fmt: skip
        return y

    def unpack(self, weight: Packed) -> Tensor:
        """The matrix [out, in] as the kernels compute with it, row by row of which is what `embed` gives."""
        return self.embed(torch.arange(weight.shape[0], device=self.device), weight)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, width = x.contiguous(), x.shape[-1]
        y = torch.empty_like(x)
        self._rms_norm(x, None, weight, None, y, width, eps)
        return y

    def add_rms_norm(self, x_TD: Tensor, y_TD: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x_TD, y_TD = x_TD.contiguous(), y_TD.contiguous()
        sum_TD, normed_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
        self._rms_norm(x_TD, y_TD, weight, sum_TD, normed_TD, x_TD.shape[-1], eps)
        return sum_TD, normed_TD

    def _rms_norm(
        self, x: Tensor, other: Tensor | None, weight: Tensor, total: Tensor | None, y: Tensor, width: int, eps: float
    ) -> None:
        rows.rms_norm[(x.numel() // width,)](
            x, other, weight, total, y, width, eps, IS_SUM=other is not None, BLOCK=triton.next_power_of_2(width)
        )

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        x, width = x.contiguous(), x.shape[-1]
        y = torch.empty_like(x)
        rows.layer_norm[(x.numel() // width,)](
            x, weight, bias, y, width, eps, HAS_BIAS=bias is not None, BLOCK=triton.next_power_of_2(width)
        )
        return y

    def rotate_and_store(
        self, q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor, angles: Angles | None, cache: LayerCache, slots_T: Tensor
    ) -> Tensor:
        q_THd, k_TGd, v_TGd = adjacent(q_THd), adjacent(k_TGd), adjacent(v_TGd)
        (num_rows, num_heads, head_dim), groups = q_THd.shape, k_TGd.shape[1]
        cos, sin = (angle.contiguous() for angle in angles) if angles else (None, None)
        rotated = self._empty(num_rows, num_heads, head_dim) if angles else q_THd
        heads = num_heads if angles else 0
        keys, values, scales = cache.keys, cache.values, cache.scales
        limit = 0.0 if scales is None else float(limit_of(keys.dtype))
        rows.rotate_and_store[(num_rows, heads + groups)](
            q_THd, k_TGd, v_TGd, cos, sin, rotated, codes(keys), codes(values), scales, slots_T,
            q_THd.stride(0), k_TGd.stride(0), v_TGd.stride(0), keys.stride(3), keys.stride(2),
            0 if scales is None else scales.stride(0), heads, groups, limit,
            HEAD_DIM=head_dim, POSITIONS=cache.block_size, BLOCK=triton.next_power_of_2(head_dim),
            IS_ROTATED=angles is not None, HAS_SCALES=scales is not None, enable_fp_fusion=False,
        )  # fmt: skip
        return rotated

    def attention(self, q_THd: Tensor, cache: LayerCache, spans: list[Span], shape: AttentionShape) -> Tensor:
        q_THd = adjacent(q_THd)
        keys, scales = cache.keys, cache.scales
        num_rows, heads, head_dim = q_THd.shape
        groups, window = keys.shape[1], shape.window or 0
        padded, dim = triton.next_power_of_2(heads // groups), max(triton.next_power_of_2(head_dim), 16)
        layout = self._laid_out(spans, attention.TILE // padded)
        splits = layout.splits
        out = self._empty(num_rows, heads, head_dim)
        partial = torch.empty(
            (num_rows, heads, splits, head_dim + 2) if splits > 1 else 0, dtype=torch.float32, device=self.device
        )
        attention.attend[(len(layout.tiles), groups, splits)](
            q_THd, codes(keys), codes(cache.values), scales, layout.tables, layout.tiles, out, partial,
            q_THd.stride(0), keys.stride(3), keys.stride(2), 0 if scales is None else scales.stride(0),
            groups, splits, shape.scale, shape.softcap or 0.0, window,
            SHARED=heads // groups, PADDED=padded, HEAD_DIM=head_dim, BLOCK_DIM=dim, POSITIONS=cache.block_size,
            HAS_SCALES=scales is not None, TILE=attention.TILE, KEYS=attention.KEYS, SPLIT=attention.SPLIT,
            num_warps=attention.WARPS, num_stages=attention.STAGES, enable_fp_fusion=False,
        )  # fmt: skip
        if splits > 1:
            attention.combine[(num_rows, heads)](
                partial, layout.positions, out, heads, splits, window,
                HEAD_DIM=head_dim, BLOCK_DIM=dim, SPLIT=attention.SPLIT, enable_fp_fusion=False,
            )  # fmt: skip
        return out

    def activate(self, x: Tensor, activation: str) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        grid = (triton.cdiv(x.numel(), NUMBERS),)
        rows.activate[grid](x, y, x.numel(), ACTIVATION=activation, BLOCK=NUMBERS)
        return y

    def gate(self, gate_up_TF: Tensor, activation: str) -> Tensor:
        gate_up_TF = gate_up_TF.contiguous()
        *leading, both = gate_up_TF.shape
        y = self._empty(*leading, both // 2)
        grid = (gate_up_TF.numel() // both, triton.cdiv(both // 2, NUMBERS))
        rows.gate[grid](gate_up_TF, y, both // 2, ACTIVATION=activation, BLOCK=NUMBERS)
        return y

    def argmax(self, logits_TV: Tensor) -> Tensor:
        logits_TV = logits_TV.contiguous()
        num_rows, width = logits_TV.shape
        best_T = torch.empty(num_rows, dtype=torch.int64, device=self.device)
        drawing.argmax[(num_rows,)](logits_TV, best_T, width, BLOCK=drawing.BLOCK)
        return best_T

    def draw(self, logits_SV: Tensor, draws: Draws, allowed_SV: Tensor | None = None) -> Tensor:
        logits_SV, allowed_SV = logits_SV.contiguous(), allowed_SV if allowed_SV is None else allowed_SV.contiguous()
        num_rows, width = logits_SV.shape
        ids_S = torch.empty(num_rows, dtype=torch.int64, device=self.device)
        drawing.draw[(num_rows,)](
            logits_SV, allowed_SV, draws.temperature, draws.top_p, draws.min_p, draws.top_k, draws.seed, draws.position,
            ids_S, width, IS_MASKED=allowed_SV is not None, BLOCK=drawing.BLOCK, enable_fp_fusion=False,
        )  # fmt: skip
        return ids_S

    def draw_one(self, logits_V: Tensor, how: Draw, allowed_V: Tensor | None = None) -> int:
        allowed_1V = None if allowed_V is None else allowed_V[None]
        return int(self.draw(logits_V[None], Draws.of([how], self.device), allowed_1V))

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _laid_out(self, spans: list[Span], tile_rows: int) -> Layout:
        """All layers of a step have the same spans, so the last layout is kept."""
        if self.frame is not None:
            return self.frame.layout(spans, tile_rows)
        if self._layout is None or self._layout[0] != tile_rows or self._layout[1].spans is not spans:
            self._layout = tile_rows, lay_out(spans, tile_rows, self.device, self.streams.upload)
        return self._layout[1]


def _parts(matrix: Packed | Tensor) -> tuple[tuple[Tensor | None, ...], dict[str, int]]:
    """What a product reads, and what it is compiled for."""
    return (matrix.parts, matrix.packing) if isinstance(matrix, Packed) else ((matrix, None, None), DENSE)


def codes(numbers: Tensor) -> Tensor:
    """Floats of 8 bits as bytes: see `float8.py`."""
    return numbers.view(torch.uint8) if numbers.dtype == torch.float8_e4m3fn else numbers


def adjacent(x_THd: Tensor) -> Tensor:
    """x with each row's numbers side by side; rows may lie apart, as slices of a wider product do."""
    _, heads, head_dim = x_THd.shape
    is_adjacent = x_THd.stride(2) == 1 and (heads == 1 or x_THd.stride(1) == head_dim)
    return x_THd if is_adjacent else x_THd.contiguous()
