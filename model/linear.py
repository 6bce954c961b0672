"""Projections: one product for matrices that share their input, dense or packed, and what adapters add to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.kernels import Kernels
from model.kernels.reference import Prepared
from model.quantization import PackedMatrix
from model.quantization.rounding import Rounding
from model.weights import Matrix, Weights


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to a projection: (x A^T) B^T, in all parts of it at once."""

    down: Prepared  # A [R, in]; R is the sum of the parts' ranks
    up: Prepared  # B [out, R], scale included; zero where a part's rows meet another part's rank


@dataclass(frozen=True, slots=True)
class Adapted:
    """Rows of the step that lie side by side, and the adapter that all of them are computed with."""

    rows: slice
    updates: Mapping[str, LowRank]  # by the projection's name


class Linear:
    """y = x W^T + b, where W stacks the rows of one or more of the checkpoint's matrices (queries, keys, values)."""

    def __init__(self, weights: Weights, parts: dict[str, int], in_features: int, kernels: Kernels) -> None:
        """`parts` names the matrices and their numbers of rows, in order."""
        self.kernels = kernels
        self.name = weights.prefix + "+".join(parts)
        self.parts = {weights.prefix + name: rows for name, rows in parts.items()}
        self.in_features = in_features
        matrices = [weights.matrix(f"{name}.weight", (rows, in_features)) for name, rows in parts.items()]
        merged = _merge(matrices)
        self.weights = [kernels.prepare(matrix) for matrix in merged]
        self.roundings = [matrix.rounding if isinstance(matrix, PackedMatrix) else None for matrix in merged]
        self.bias = self._stack_biases(weights, parts)

    def _stack_biases(self, weights: Weights, parts: dict[str, int]) -> Tensor | None:
        if not any(f"{name}.bias" in weights for name in parts):
            return None
        biases = [
            weights.vector(f"{name}.bias", rows) if f"{name}.bias" in weights else torch.zeros(rows)
            for name, rows in parts.items()
        ]
        return torch.cat(biases).to(self.kernels.device, self.kernels.dtype)

    def __call__(self, x_TD: Tensor, adapted: Sequence[Adapted] = ()) -> Tensor:
        y_TO = self._product(x_TD)
        for rows, updates in ((part.rows, part.updates) for part in adapted):
            if update := updates.get(self.name):
                y_TO[rows] = self.kernels.add_low_rank(y_TO[rows], x_TD[rows], update.down, update.up)
        return y_TO

    def _product(self, x_TD: Tensor) -> Tensor:
        if len(self.weights) == 1:
            return self._times(x_TD, self.weights[0], self.roundings[0], self.bias)
        products = zip(self.weights, self.roundings, strict=True)
        y = torch.cat([self._times(x_TD, weight, rounding) for weight, rounding in products], dim=-1)
        return y if self.bias is None else y + self.bias

    def _times(self, x_TD: Tensor, weight: Prepared, rounding: Rounding | None, bias: Tensor | None = None) -> Tensor:
        if rounding is None:
            return self.kernels.linear(x_TD, weight, bias)
        return self.kernels.linear_of_rounded(x_TD, rounding, weight, bias)


def _merge(matrices: list[Matrix]) -> list[Matrix]:
    """Stacks the rows of all where they are of one kind; a file may mix formats within one projection."""
    packed = [matrix for matrix in matrices if isinstance(matrix, PackedMatrix)]
    dense = [matrix for matrix in matrices if isinstance(matrix, Tensor)]
    if len(matrices) == 1:
        return matrices
    if len(dense) == len(matrices):
        return [torch.cat(dense)]
    if len(packed) == len(matrices) and len({(type(matrix), matrix.kind) for matrix in packed}) == 1:
        return [packed[0].above(packed[1:])]
    return matrices
