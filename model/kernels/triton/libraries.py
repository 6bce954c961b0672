"""What kept libraries compute on a card where nobody asks for equal bits: products and attention.

cuBLAS chooses its way by the number of rows. torch's `varlen_attn` promises equal bits in any company while it does
not split contexts, but not for a sequence that is cut into other chunks. So these kernels promise nothing; their name,
which is in the log and in every receipt, tells which of the libraries compute.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from model.kernels.reference import AttentionShape, Example, Forward, LayerCache, Prepared, Recording, Span
from model.kernels.triton.kernels import TritonKernels, adjacent
from model.kernels.triton.packing import Packed
from model.quantization.rounding import Rounding

READS_BLOCK_TABLES = {9: "FA3", 10: "FA4"}  # by the card's major capability; torch's own FlashAttention 2 does not
MAX_HEAD_DIM = {"FA3": 256, "FA4": 128}


@dataclass(frozen=True, slots=True)
class Sequences:
    """The chunks of a step as `varlen_attn` takes them, in the order of their rows; the same for all its layers."""

    spans: list[Span]
    first_rows: Tensor  # int32 [chunks + 1]
    lengths: Tensor  # of the contexts, int32 [chunks]
    tables: Tensor  # int32 [chunks, blocks of the longest]
    longest_chunk: int
    longest_context: int


class LibraryKernels(TritonKernels):
    """The Triton kernels, but for what a library does faster."""

    def __init__(self, device: torch.device, dtype: torch.dtype, flash: str | None, has_float8: bool = False) -> None:
        """`flash` is the FlashAttention that is active; None leaves attention as it is.

        With `has_float8`, cuBLAS multiplies floats of 8 bits: where both sides are.
        """
        super().__init__(device, dtype)
        self.name = "+".join(("cublas", *([flash] if flash else []), *(["float8"] if has_float8 else []), self.name))
        self.has_float8 = has_float8
        self.is_exact = False
        self.flash = flash
        self._sequences: Sequences | None = None  # of the last step

    def record(self, forward: Forward, example: Example, most_rows: int, context_length: int) -> Recording | None:
        """A recording would keep the lengths that `varlen_attn` gets as numbers of Python."""
        return None if self.flash else super().record(forward, example, most_rows, context_length)

    def linear(self, x_TD: Tensor, weight: Prepared, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Packed):
            if len(x_TD) < self.many_rows:
                return super().linear(x_TD, weight, bias)
            weight = self.unpack(weight)
        assert isinstance(weight, Tensor)
        return F.linear(x_TD, weight, bias)

    def linear_of_rounded(
        self, x_TD: Tensor, rounding: Rounding, weight: Prepared, bias: Tensor | None = None
    ) -> Tensor:
        if not self.has_float8 or not isinstance(weight, Packed) or not _multiplies(rounding, weight):
            return super().linear_of_rounded(x_TD, rounding, weight, bias)
        numbers_TGd, scales_TG1 = rounding.split(x_TD)
        y = torch._scaled_mm(
            numbers_TGd.flatten(1), weight.codes.view(torch.float8_e4m3fn).T,
            scale_a=scales_TG1.flatten(1), scale_b=weight.scales.T, out_dtype=torch.bfloat16,
        ).to(self.dtype)  # fmt: skip
        return y if bias is None else y + bias

    def attention(self, q_THd: Tensor, cache: LayerCache, spans: list[Span], shape: AttentionShape) -> Tensor:
        if not self._has_flash(q_THd, cache, shape):
            return super().attention(q_THd, cache, spans, shape)
        if self._sequences is None or self._sequences.spans is not spans:
            self._sequences = self._line_up(spans)
        step = self._sequences
        out = varlen_attn(
            adjacent(q_THd), cache.keys.permute(0, 3, 1, 2), cache.values.transpose(1, 2),
            step.first_rows, None, step.longest_chunk, step.longest_context,
            scale=shape.scale, window_size=(-1 if shape.window is None else shape.window - 1, 0),
            enable_gqa=True, seqused_k=step.lengths, block_table=step.tables, num_splits=1,
        )  # fmt: skip
        return cast(Tensor, out)  # a pair only where the sums of weights are asked for as well

    def _has_flash(self, q_THd: Tensor, cache: LayerCache, shape: AttentionShape) -> bool:
        """It knows no soft cap, and nothing but keys and values of the queries' own 16 bits."""
        if self.flash is None or shape.softcap is not None or q_THd.dtype == torch.float32:
            return False
        head_dim = q_THd.shape[2]
        return cache.keys.dtype == q_THd.dtype and head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM[self.flash]

    def _line_up(self, spans: list[Span]) -> Sequences:
        ordered = sorted(spans, key=lambda span: span.first_row)

        def column(numbers: list[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int32, device=self.device)

        return Sequences(
            spans,
            column([0, *(span.last_row for span in ordered)]),
            column([span.stop for span in ordered]),
            torch.nn.utils.rnn.pad_sequence([span.blocks for span in ordered], batch_first=True).int(),
            max(span.last_row - span.first_row for span in ordered),
            max(span.stop for span in ordered),
        )


def _multiplies(rounding: Rounding, weight: Packed) -> bool:
    """cuBLAS takes a scale for each row of either side, and sizes that are multiples of 16."""
    are_floats = rounding.dtype == torch.float8_e4m3fn and weight.codes.dtype == torch.uint8 and weight.bits == 8
    is_of_rows = rounding.group is None and weight.scales.shape[1] == 1
    return are_floats and is_of_rows and weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0


def has_float8(capability: tuple[int, int]) -> bool:
    """Whether cuBLAS multiplies floats of 8 bits on such a card under scales of rows."""
    return capability >= (9, 0)


def activate_flash(capability: tuple[int, int]) -> str | None:
    """The FlashAttention that reads block tables on such a card, made torch's; None where it is not installed."""
    name = READS_BLOCK_TABLES.get(capability[0])
    if name is None:
        return None
    try:
        activate_flash_attention_impl(name)
    except (ImportError, RuntimeError):
        return None
    return name
