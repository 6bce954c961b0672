"""The operations in Triton: the fast form on a GPU, with the same bits at any batch size."""

from model.kernels.triton.kernels import TritonKernels

__all__ = ["TritonKernels"]
