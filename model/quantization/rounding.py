"""How a model that was quantised with its activations holds them: rows in 8 bits, under scales."""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-30  # rows of zeros have some scale as well


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a matrix's rows of input are rounded to before the product. It is part of what the checkpoint's model is.

    A row has a scale of its own, or one for each `group` of its columns, by its largest magnitude; or all have `scale`.
    """

    dtype: torch.dtype  # int8 or float8_e4m3fn
    group: int | None = None
    scale: float | None = None

    def split(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers in `dtype` [T, groups, D / groups], and their scales fp32 [T, groups, 1].

        Source: `calculate_qparams` of compressed-tensors; integers there are -128 to 127, so a scale spans 127.5.
        """
        width = self.group or x_TD.shape[1]
        x_TGd = x_TD.float().reshape(len(x_TD), x_TD.shape[1] // width, width)
        is_float = self.dtype.is_floating_point
        low, high = (-448.0, 448.0) if is_float else (-128.0, 127.0)
        if self.scale is None:
            scales = (x_TGd.abs().amax(-1, keepdim=True) / ((high - low) / 2)).clamp(min=SMALLEST_SCALE)
        else:
            scales = torch.full((*x_TGd.shape[:2], 1), self.scale, device=x_TD.device)
        numbers = (x_TGd / scales).clamp(low, high)
        return (numbers if is_float else numbers.round()).to(self.dtype), scales

    def __call__(self, x_TD: Tensor) -> Tensor:
        """x as the model sees it, in x's dtype."""
        numbers, scales = self.split(x_TD)
        return (numbers.float() * scales).flatten(1).to(x_TD.dtype)
