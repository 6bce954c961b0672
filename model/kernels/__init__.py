"""The operations of the forward pass: one name each, a plain form that specifies it, fast forms that override it."""

import torch

from model.kernels.reference import Kernels, Weight

__all__ = ["Kernels", "Weight", "select"]


def select(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The fastest kernels that run on `device`, computing in `dtype`."""
    return Kernels(device, dtype)
