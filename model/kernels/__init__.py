"""The operations of the forward pass: one name each, a plain form that specifies it, fast forms that override it."""

from importlib.util import find_spec

import torch

from model.kernels import cpu
from model.kernels.cpu import available_cores
from model.kernels.reference import Kernels

__all__ = ["Kernels", "available_cores", "select"]


def select(
    device: torch.device,
    dtype: torch.dtype,
    activations: str = "int16",
    threads: int | None = None,
    exact: bool = True,
) -> Kernels:
    """The fastest kernels that run on `device`, computing in `dtype`.

    `activations` ("int16" or "int8") is how the C++ kernels hold them against packed weights, and `threads` how many
    of the processor's cores they share (all by default). With `exact` a row's bits do not depend on what is computed
    beside it, if any kernels there promise that; without it, those of a card may give it up for speed. Raises
    ValueError where kernels are asked for what is not theirs to choose.
    """
    fast = cpu.load(activations, threads=threads) if device.type == "cpu" and dtype == torch.float32 else None
    if fast is None and activations != "int16":
        raise ValueError(f"activations {activations} needs the C++ kernels, which compute in float32 on a CPU")
    if device.type == "cpu" and not exact:
        raise ValueError("no-exact needs a CUDA device: nothing on a CPU is faster for it")
    # What fast kernels leave to torch is too small to share out, and its threads would fight theirs for the cores.
    torch.set_num_threads(1 if fast else threads or available_cores())
    return fast or _gpu(device, dtype, exact) or Kernels(device, dtype)


def _gpu(device: torch.device, dtype: torch.dtype, exact: bool) -> Kernels | None:
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    # Not for machines without a card: they need no Triton.
    from model.kernels.triton import LibraryKernels, TritonKernels, activate_flash, has_float8

    if exact:
        return TritonKernels(device, dtype)
    capability = torch.cuda.get_device_capability(device)
    return LibraryKernels(device, dtype, activate_flash(capability), has_float8(capability))
