"""The operations in Triton: the fast form on a GPU, with the same bits at any batch size, or libraries' without."""

from model.kernels.triton.kernels import TritonKernels
from model.kernels.triton.libraries import LibraryKernels, activate_flash, has_float8

__all__ = ["LibraryKernels", "TritonKernels", "activate_flash", "has_float8"]
