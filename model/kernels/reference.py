"""What every operation of the forward pass computes, in plain torch on any device: the specification.

A backend subclasses `Kernels`, overrides what it has in a faster form and inherits the rest.

Shapes: T rows of the step (tokens of all chunks, packed), D model width, H query heads, G KV heads, d head size,
N blocks of the cache, B positions of a block, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.drawing import Draw, Draws, draw
from model.kernels.streams import streams_of
from model.quantization import PackedMatrix
from model.quantization.rounding import Rounding

SMALLEST_MAGNITUDE = 1e-30  # whose inverse is a number still; a vector without a larger one is quantised to zeros

Weight = Tensor | PackedMatrix  # a matrix as the checkpoint has it
Prepared = object  # the same as a backend's products take it


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of one chunk and where its context lies in the cache."""

    first_row: int
    last_row: int  # exclusive
    start: int  # position of the first row; all positions before it are in the cache
    blocks: Tensor  # block table, int64 [blocks of the sequence]

    @property
    def stop(self) -> int:
        return self.start + self.last_row - self.first_row


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys [N, G, d, B] (transposed: a score is then a row of products) and values [N, G, B, d].

    Where the kernels want keys in rows, those lie in memory as the values do.

    In 8 bits and in integers, every key and value has a scale of its own, under which its largest magnitude is the
    type's limit.
    """

    keys: Tensor
    values: Tensor
    scales: Tensor | None = None  # where `is_scaled` of the type: fp32 [2, N, G, B]

    @property
    def block_size(self) -> int:
        return self.values.shape[2]

    def read(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """The keys [n, G, d, B] and values [n, G, B, d] of n blocks, fp32."""
        keys, values = self.keys[blocks].float(), self.values[blocks].float()
        if self.scales is None:
            return keys, values
        return keys * self.scales[0, blocks].unsqueeze(2), values * self.scales[1, blocks].unsqueeze(3)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What one layer's attention does beyond softmax(q k) v."""

    scale: float
    window: int | None  # a query sees this many last positions, itself among them
    softcap: float | None


Angles = tuple[Tensor, Tensor]  # cosines and sines of each row's position, fp32 [T, d/2]
Forward = Callable[[tuple[Tensor, ...], list[Span]], Tensor]  # tensors of T rows each, and where their contexts lie
Example = Callable[[int], tuple[tuple[Tensor, ...], list[Span]]]  # so many rows, whose results nobody needs


class Recording(Protocol):
    """A forward pass in a form that costs less a call, for steps of few rows."""

    def padded(self, rows: int, context: int) -> int | None:
        """To how many rows a step with a context so long has to be filled up; None where there is no such recording."""

    def replay(self, inputs: tuple[Tensor, ...], spans: list[Span]) -> Tensor:
        """What the forward pass gives for these, which are filled up; valid until the next replay."""

    def extend(self) -> bool:
        """Records for one more size of steps, for which nobody should wait; whether it has, and may again."""


class Kernels:
    """Plain torch. Inputs and outputs are contiguous, on `device` and in `dtype` unless said otherwise."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.name = f"torch-{torch.__version__}"  # what computes other bits has another name
        self.kv_dtype = dtype  # what the KV cache holds unless asked otherwise
        self.are_keys_in_rows = False  # whether it reads keys best where the numbers of each lie side by side
        self.streams = streams_of(device)
        self.is_exact = False  # a row's bits depend on nothing computed beside it: torch does not promise it

    def record(self, forward: Forward, example: Example, most_rows: int, context_length: int) -> Recording | None:
        """`forward` recorded, or to be recorded bit by bit, for up to `most_rows`; None if it cannot be.

        It cannot where anything but these operations has a part in it, unless the device itself records.
        """
        return None

    def prepare(self, weight: Weight) -> Prepared:
        """A checkpoint's matrix [out, in] in the form that `linear` and `embed` of this backend take."""
        dense = weight.dequantize() if isinstance(weight, PackedMatrix) else weight
        return dense.to(self.device, self.dtype)

    def prepared_bytes(self, shape: tuple[int, ...], dtype: str) -> int:
        """What `prepare` makes of a tensor of this shape; `dtype` is "F32", "F16", "BF16" or a packed format."""
        return math.prod(shape) * self.dtype.itemsize

    def attention_bytes(self, rows: int, heads: int, head_dim: int, context_length: int) -> int:
        """What `attention` holds beside its result, at most: here the scores, masked and as weights."""
        return 3 * rows * heads * context_length * torch.float32.itemsize

    def embed(self, ids_T: Tensor, weight: Prepared) -> Tensor:
        """Rows `ids_T` (int64) of the prepared matrix [V, D] -> [T, D]."""
        assert isinstance(weight, Tensor)
        return weight[ids_T]

    def linear(self, x_TD: Tensor, weight: Prepared, bias: Tensor | None = None) -> Tensor:
        """x W^T + b with a prepared W [out, D] -> [T, out]."""
        assert isinstance(weight, Tensor)
        return F.linear(x_TD, weight, bias)

    def linear_of_rounded(
        self, x_TD: Tensor, rounding: Rounding, weight: Prepared, bias: Tensor | None = None
    ) -> Tensor:
        """The same of x as a checkpoint's model rounds it."""
        return self.linear(rounding(x_TD), weight, bias)

    def stack(self, weights: Sequence[Prepared]) -> Prepared:
        """Prepared matrices of one shape [out, D] as `linear_of_each` takes them."""
        return tuple(weights)

    def linear_of_each(self, x_TD: Tensor, chosen_T: Tensor, stack: Prepared) -> Tensor:
        """Each row times the matrix of the stack that `chosen_T` (int64) names -> [T, out]."""
        assert isinstance(stack, tuple)
        order_T = torch.argsort(chosen_T, stable=True)
        groups = torch.split(x_TD[order_T], torch.bincount(chosen_T, minlength=len(stack)).tolist())
        ordered_TO = torch.cat([self.linear(x, weight) for x, weight in zip(groups, stack, strict=True) if len(x)])
        y_TO = torch.empty_like(ordered_TO)
        y_TO[order_T] = ordered_TO
        return y_TO

    def add_low_rank(self, y_TO: Tensor, x_TD: Tensor, down: Prepared, up: Prepared) -> Tensor:
        """y + (x A^T) B^T with prepared A [R, D] and B [O, R], as low-rank adapters have them -> [T, O]."""
        return self.add(y_TO, self.linear(self.linear(x_TD, down), up))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension, computed in fp32; `weight` is fp32."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * scale * weight).to(x.dtype)

    def add_rms_norm(self, x_TD: Tensor, y_TD: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x + y, and its norm."""
        sum_TD = self.add(x_TD, y_TD)
        return sum_TD, self.rms_norm(sum_TD, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """(x - mean) / std * weight + bias over the last dimension, computed in fp32; both are fp32."""
        return F.layer_norm(x.float(), (x.shape[-1],), weight, bias, eps).to(x.dtype)

    def rotate(self, x_THd: Tensor, cos_Td: Tensor, sin_Td: Tensor) -> Tensor:
        """Rotates dimension i with i + d/2 by each row's angles; cos and sin are fp32 [T, d/2]."""
        first, second = x_THd.float().chunk(2, dim=-1)
        cos, sin = cos_Td[:, None], sin_Td[:, None]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_THd.dtype)

    def store(self, k_TGd: Tensor, v_TGd: Tensor, cache: LayerCache, slots_T: Tensor) -> None:
        """Writes each row's key and value at its slot (block * B + offset, int64)."""
        blocks, offsets = slots_T // cache.block_size, slots_T % cache.block_size
        if cache.scales is not None:
            k_TGd, cache.scales[0, blocks, :, offsets] = _quantize(k_TGd, cache.keys.dtype)
            v_TGd, cache.scales[1, blocks, :, offsets] = _quantize(v_TGd, cache.values.dtype)
        cache.keys[blocks, :, :, offsets] = k_TGd.to(cache.keys.dtype)
        cache.values[blocks, :, offsets] = v_TGd.to(cache.values.dtype)

    def rotate_and_store(
        self, q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor, angles: Angles | None, cache: LayerCache, slots_T: Tensor
    ) -> Tensor:
        """Stores each row's key, rotated where there are angles, and its value; gives the queries, rotated as well."""
        if angles:
            q_THd, k_TGd = self.rotate(q_THd, *angles), self.rotate(k_TGd, *angles)
        self.store(k_TGd, v_TGd, cache, slots_T)
        return q_THd

    def attention(self, q_THd: Tensor, cache: LayerCache, spans: list[Span], shape: AttentionShape) -> Tensor:
        """Causal attention of every row over its own sequence's context -> [T, H, d].

        The step's own keys and values are stored already, so the context of a row at position p is 0..p.
        """
        out_THd = torch.empty_like(q_THd)
        for span in spans:
            rows = slice(span.first_row, span.last_row)
            out_THd[rows] = self._attend(q_THd[rows], cache, span, shape)
        return out_THd

    def _attend(self, q_RHd: Tensor, cache: LayerCache, span: Span, shape: AttentionShape) -> Tensor:
        """One chunk of R rows: scores over the C positions that its first row can still see, and after."""
        num_rows, num_heads, head_dim = q_RHd.shape
        size, num_kv = cache.block_size, cache.keys.shape[1]
        first_block = 0 if shape.window is None else max(0, span.start + 1 - shape.window) // size
        blocks = span.blocks[first_block : -(-span.stop // size)]
        length = span.stop - first_block * size
        k_NGdB, v_NGBd = cache.read(blocks)
        k_GdC = k_NGdB.permute(1, 2, 0, 3).reshape(num_kv, head_dim, -1)[..., :length]
        v_GCd = v_NGBd.permute(1, 0, 2, 3).reshape(num_kv, -1, head_dim)[:, :length]

        q_GRd = q_RHd.view(num_rows, num_kv, -1, head_dim).permute(1, 2, 0, 3).reshape(num_kv, -1, head_dim).float()
        scores_GRC = torch.matmul(q_GRd, k_GdC) * shape.scale  # R runs over (query head of the group, row)
        if shape.softcap is not None:
            scores_GRC = torch.tanh(scores_GRC / shape.softcap) * shape.softcap

        queries = torch.arange(span.start, span.stop, device=q_RHd.device)[:, None]
        keys = torch.arange(first_block * size, span.stop, device=q_RHd.device)[None]
        hidden = keys > queries
        if shape.window is not None:
            hidden |= keys <= queries - shape.window
        scores_GRC.view(num_kv, -1, num_rows, length).masked_fill_(hidden, float("-inf"))

        o_GRd = torch.matmul(torch.softmax(scores_GRC, dim=-1), v_GCd)
        o_RHd = o_GRd.view(num_kv, -1, num_rows, head_dim).permute(2, 0, 1, 3).reshape(num_rows, num_heads, head_dim)
        return o_RHd.to(q_RHd.dtype)

    def add(self, x_TD: Tensor, y_TD: Tensor) -> Tensor:
        """x + y."""
        return x_TD + y_TD

    def scale(self, x_TD: Tensor, factor: float) -> Tensor:
        """x * factor."""
        return x_TD * factor

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """`activation` is one of relu, gelu (exact), gelu_tanh, silu."""
        match activation:
            case "relu":
                return F.relu(x)
            case "gelu":
                return F.gelu(x)
            case "gelu_tanh":
                return F.gelu(x, approximate="tanh")
            case "silu":
                return F.silu(x)
        raise AssertionError(f"no such activation: {activation}")

    def gate(self, gate_up_TF: Tensor, activation: str) -> Tensor:
        """activation(gate) * up, where the first half of each row is gate and the second up -> [T, F/2]."""
        gate, up = gate_up_TF.chunk(2, dim=-1)
        return self.activate(gate, activation) * up

    def argmax(self, logits_TV: Tensor) -> Tensor:
        """Of each row the column of the largest number, the first of equals; -1 where one is not finite. int64 [T]."""
        is_finite = torch.isfinite(logits_TV).all(-1)
        return torch.where(is_finite, logits_TV.argmax(-1), -1)

    def draw(self, logits_SV: Tensor, draws: Draws, allowed_SV: Tensor | None = None) -> Tensor:
        """The token that each row of fp32 logits chooses among those allowed (bool; all by default). int64 [S].

        -1 where a logit is not finite, allowed or not, and where none is allowed. See `drawing.py`.
        """
        can_choose_S = self.argmax(logits_SV) >= 0
        masks: Sequence[Tensor | None] = [None] * len(logits_SV)
        if allowed_SV is not None:
            can_choose_S, masks = can_choose_S & allowed_SV.any(-1), allowed_SV.unbind()
        rows = zip(can_choose_S.tolist(), logits_SV, draws.rows(), masks, strict=True)
        ids = [self.draw_one(*row) if can_choose else -1 for can_choose, *row in rows]
        return torch.tensor(ids, dtype=torch.int64, device=self.device)

    def draw_one(self, logits_V: Tensor, how: Draw, allowed_V: Tensor | None = None) -> int:
        """The same of a row that is known to have a choice, without tensors for what is known on the host."""
        if allowed_V is not None:
            logits_V = torch.where(allowed_V, logits_V, -torch.inf)
        return int(torch.argmax(logits_V)) if how.temperature == 0.0 else draw(logits_V, how)


def is_scaled(dtype: torch.dtype) -> bool:
    """Whether a cache of this type holds numbers under scales."""
    return not dtype.is_floating_point or dtype.itemsize == 1


def limit_of(dtype: torch.dtype) -> float:
    """The largest number of a type."""
    return torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max


def _quantize(x_TGd: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Numbers for those of `dtype`, and the scale [T, G] of each vector."""
    limit = limit_of(dtype)
    largest_TG = x_TGd.float().abs().amax(-1)
    inverse_TG = torch.where(largest_TG > SMALLEST_MAGNITUDE, limit / largest_TG, 0.0)
    numbers_TGd = x_TGd.float() * inverse_TG[..., None]
    return numbers_TGd if dtype.is_floating_point else torch.round(numbers_TGd), largest_TG / limit
