"""The operations in C++: the fast form for fp32 on a CPU, with the same bits at any batch size and thread count."""

import logging

from model.kernels.cpu.kernels import CpuKernels
from model.kernels.cpu.library import available_cores, find_library

__all__ = ["CpuKernels", "available_cores", "load"]

logger = logging.getLogger(__name__)


def load(activations: str = "int16", level: str = "", threads: int | None = None) -> CpuKernels | None:
    """The kernels of an instruction-set level (the processor's best by default), or None if there are none.

    `activations` are held in int16 or int8 per 32 values against packed weights; `threads` default to all cores.
    """
    native = find_library()
    level = level or (native.best_level() if native else "")
    operations = native.operations(level) if native else None
    if native is None or operations is None:
        logger.warning(
            "cpu kernels not available, falling back to plain torch built=%s level=%s", native is not None, level
        )
        return None
    native.set_threads(threads or available_cores())
    return CpuKernels(native, level, operations, activations)
