"""Projections: one product for matrices that share their input, dense or packed."""

import torch
from torch import Tensor

from model.kernels import Kernels
from model.quantization import PackedTensor
from model.weights import Weights


class Linear:
    """y = x W^T + b, where W stacks the rows of one or more of the checkpoint's matrices (queries, keys, values)."""

    def __init__(self, weights: Weights, parts: dict[str, int], in_features: int, kernels: Kernels) -> None:
        """`parts` names the matrices and their numbers of rows, in order."""
        self.kernels = kernels
        matrices = [weights.matrix(f"{name}.weight", (rows, in_features)) for name, rows in parts.items()]
        self.weights = [kernels.prepare(matrix) for matrix in _merge(matrices)]
        self.bias = self._stack_biases(weights, parts)

    def _stack_biases(self, weights: Weights, parts: dict[str, int]) -> Tensor | None:
        if not any(f"{name}.bias" in weights for name in parts):
            return None
        biases = [
            weights.vector(f"{name}.bias", rows) if f"{name}.bias" in weights else torch.zeros(rows)
            for name, rows in parts.items()
        ]
        return torch.cat(biases).to(self.kernels.device, self.kernels.dtype)

    def __call__(self, x_TD: Tensor) -> Tensor:
        if len(self.weights) == 1:
            return self.kernels.linear(x_TD, self.weights[0], self.bias)
        y = torch.cat([self.kernels.linear(x_TD, weight) for weight in self.weights], dim=-1)
        return y if self.bias is None else y + self.bias


def _merge(matrices: list[Tensor | PackedTensor]) -> list[Tensor | PackedTensor]:
    """Stacks the rows of all where they have one format; a file may mix formats within one projection."""
    packed = [matrix for matrix in matrices if isinstance(matrix, PackedTensor)]
    dense = [matrix for matrix in matrices if isinstance(matrix, Tensor)]
    if len(matrices) == 1:
        return matrices
    if len(dense) == len(matrices):
        return [torch.cat(dense)]
    if len(packed) == len(matrices) and len({matrix.format for matrix in packed}) == 1:
        rows = sum(matrix.shape[0] for matrix in packed)
        data = torch.cat([matrix.data for matrix in packed])
        return [PackedTensor(packed[0].format, (rows, packed[0].shape[1]), data)]
    return matrices
