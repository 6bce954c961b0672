"""Weights of 8 bits that are floats (Micikevicius et al. 2022), under a scale for each block, row or matrix."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.quantization.formats import Scaled
from model.quantization.integers import check_cut
from model.quantization.matrix import PackedMatrix
from model.quantization.rounding import Rounding


@dataclass(frozen=True, slots=True)
class Float8Layout:
    """What `quantization_config` says of all matrices."""

    scale_name: str  # behind the module's name
    block: tuple[int, int] | None  # rows and columns under a scale; None: a row, or the matrix
    rounds_input: bool
    input_group: int | None  # columns that are rounded together; None: a row


@dataclass(frozen=True, slots=True, eq=False)
class Float8Matrix(PackedMatrix):
    """Weights are number * scale in fp32: float8_e4m3fn [rows, columns], scales [blocks of rows, blocks of columns]."""

    numbers: Tensor
    scales: Tensor
    block: tuple[int, int]
    layout: Float8Layout
    input_scale: Tensor | None  # of one number

    @classmethod
    def build(cls, layout: Float8Layout, parts: Mapping[str, Tensor]) -> "Float8Matrix":
        """From the tensors by their names in the file. Raises ValueError where they do not fit together."""
        numbers, scales, input_scale = parts["weight"], parts[layout.scale_name], parts.get("input_scale")
        if numbers.dtype != torch.float8_e4m3fn:
            raise ValueError(f"weight is {numbers.dtype}, not float8_e4m3fn, beside a {layout.scale_name}")
        rows, columns = numbers.shape
        block = layout.block or (rows if scales.numel() == 1 else 1, columns)
        blocks = -(-rows // block[0]), -(-columns // block[1])
        if scales.numel() != blocks[0] * blocks[1]:
            raise ValueError(f"{layout.scale_name} {tuple(scales.shape)} does not fit {rows} x {columns} weights")
        if layout.input_group and columns % layout.input_group:
            raise ValueError(f"{columns} columns are no whole groups of {layout.input_group} that are rounded together")
        if input_scale is not None and input_scale.numel() != 1:
            raise ValueError(f"input_scale has shape {tuple(input_scale.shape)}, which is not one number")
        return cls(numbers, scales.reshape(blocks), block, layout, input_scale)

    @property
    def shape(self) -> tuple[int, int]:
        return self.numbers.shape[0], self.numbers.shape[1]

    @property
    def name(self) -> str:
        """Where rows are rounded whole, ranks cannot share their columns: they are one group then."""
        rounds_rows = self.layout.rounds_input and self.layout.input_group is None and self.input_scale is None
        return str(Scaled("F", 8, self.block[1] if rounds_rows or self.scales.shape[1] > 1 else 0))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        parts = self.numbers, self.scales
        return parts if self.input_scale is None else (*parts, self.input_scale)

    @property
    def kind(self) -> Hashable:
        return self.block[1], self.rounding

    @property
    def rounding(self) -> Rounding | None:
        if not self.layout.rounds_input:
            return None
        scale = None if self.input_scale is None else float(self.input_scale)
        return Rounding(torch.float8_e4m3fn, self.layout.input_group, scale)

    def scales_of_rows(self) -> Tensor:
        """fp32 [rows, blocks of columns]."""
        return self.scales.float().repeat_interleave(self.block[0], dim=0)[: self.shape[0]]

    def dequantize(self) -> Tensor:
        weights, scales = self.numbers.float(), self.scales_of_rows()
        for block, columns in enumerate(torch.split(weights, self.block[1], dim=1)):
            columns.mul_(scales[:, block, None])
        return weights

    def narrow(self, dim: int, start: int, length: int) -> "Float8Matrix":
        numbers = self.numbers.narrow(dim, start, length)
        if dim == 0:
            scales = self.scales_of_rows().narrow(0, start, length)
            return Float8Matrix(numbers, scales, (1, self.block[1]), self.layout, self.input_scale)
        if self.scales.shape[1] == 1:
            return Float8Matrix(numbers, self.scales, (self.block[0], length), self.layout, self.input_scale)
        step, is_last = self.block[1], start + length == self.shape[1]
        check_cut(dim, start, -(-length // step) * step if is_last else length, step)
        scales = self.scales.narrow(1, start // step, -(-length // step))
        return Float8Matrix(numbers, scales, self.block, self.layout, self.input_scale)

    def above(self, others: Sequence["Float8Matrix"]) -> "Float8Matrix":
        every = (self, *others)
        numbers, scales = torch.cat([m.numbers for m in every]), torch.cat([m.scales_of_rows() for m in every])
        return Float8Matrix(numbers, scales, (1, self.block[1]), self.layout, self.input_scale)
