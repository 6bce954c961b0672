"""A weight matrix that stays packed: its bytes, what they mean, and which rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.quantization.dequantize import dequantize_blocks
from model.quantization.formats import Format
from model.quantization.matrix import PackedMatrix

SLAB_WEIGHTS = 1 << 18  # weights expanded at a time: the temporaries then fit a core's cache


@dataclass(frozen=True, slots=True, eq=False)
class PackedTensor(PackedMatrix):
    """A matrix of GGML's blocks. `data` may be a view of a memory-mapped file, so copies are made of rows only.

    Shapes: `shape` is (rows, columns) in weights, `data` is uint8 [rows, bytes per row].
    """

    format: Format
    shape: tuple[int, int] = field()  # else the property that it overrides would be its default
    data: Tensor

    def __post_init__(self) -> None:
        rows, columns = self.shape
        assert self.data.dtype == torch.uint8, "packed data is bytes"
        assert self.data.shape == (rows, self.format.row_bytes(columns)), "the bytes do not make up the shape"

    @property
    def name(self) -> str:
        return self.format.name

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.data,)

    @property
    def kind(self) -> Format:
        return self.format

    def dequantize(self) -> Tensor:
        """The weights as float32 [rows, columns], bit-equal to gguf's reference."""
        rows, columns = self.shape
        weights = torch.empty(rows, columns, dtype=torch.float32, device=self.data.device)
        slab = max(1, SLAB_WEIGHTS // columns)
        for start in range(0, rows, slab):
            blocks = self.data[start : start + slab].reshape(-1, self.format.block_bytes)
            weights[start : start + slab] = dequantize_blocks(self.format, blocks).view(-1, columns)
        return weights

    def select_rows(self, index: Tensor) -> "PackedTensor":
        """The rows that `index` (integer [n]) names, in its order, copied out of `data`."""
        return PackedTensor(self.format, (len(index), self.shape[1]), self.data[index])

    def narrow(self, dim: int, start: int, length: int) -> "PackedTensor":
        shape = (length, self.shape[1]) if dim == 0 else (self.shape[0], length)
        if dim == 1 and (start % self.format.block_size or length % self.format.block_size):
            raise ValueError(f"columns {start} to {start + length} are no whole blocks of {self.format.name}")
        if dim == 1:
            start, length = self.format.row_bytes(start), self.format.row_bytes(length)
        return PackedTensor(self.format, shape, self.data.narrow(dim, start, length))

    def above(self, others: Sequence["PackedTensor"]) -> "PackedTensor":
        rows = sum(matrix.shape[0] for matrix in (self, *others))
        return PackedTensor(self.format, (rows, self.shape[1]), torch.cat([m.data for m in (self, *others)]))

    def split(self, parts: int) -> list["PackedTensor"]:
        """`parts` views of equally many rows each: the experts of a stacked tensor."""
        rows, columns = self.shape
        assert rows % parts == 0, "the rows do not share out evenly"
        return [PackedTensor(self.format, (rows // parts, columns), data) for data in self.data.chunk(parts)]
