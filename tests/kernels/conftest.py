"""The kernels under test at every instruction-set level of this processor, and weights for them."""

import os
from collections.abc import Callable, Iterator
from functools import partial

import gguf
import pytest
import quantizers
import torch
from torch import Tensor

from model.kernels import Kernels
from model.kernels.cpu import CpuKernels, load
from model.kernels.cpu.library import find_library
from model.kernels.reference import Weight
from model.quantization import PackedTensor
from model.quantization.formats import Format

DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SCALED: dict[str, Callable[[Tensor], Weight]] = {
    f"I{bits}/{group}": partial(quantizers.gptq_matrix, bits, group) for bits, group in ((4, 32), (4, 96), (8, 32))
}
SCALED["F8/32"] = lambda weight: quantizers.float8_matrix((16, 32), weight)
SCALED["F8/0"] = lambda weight: quantizers.float8_matrix(None, weight)
LEVELS = ("portable", "avx2", "avx512", "neon")
MakeWeight = Callable[[str, int, int], Weight]


def levels() -> list[str]:
    native = find_library()
    assert native is not None, "the package was installed without its kernels: is there a C++ compiler?"
    return [level for level in LEVELS if native.operations(level)]


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def reference() -> Kernels:
    return Kernels(torch.device("cpu"), torch.float32)


@pytest.fixture(params=levels())
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    kernels = load(level=request.param, threads=2)
    assert kernels is not None
    return kernels


@pytest.fixture
def device() -> Iterator[torch.device]:
    """Where Triton kernels are tested, and where the tensors lie that a test makes: see tests/conftest.py."""
    with torch.device(os.environ.get("HEADRACE_TEST_DEVICE", "cpu")) as device:
        yield device


@pytest.fixture
def make_weight() -> MakeWeight:
    """A random matrix [rows, columns] in a format of GGUF or of safetensors, on the CPU as those of a checkpoint.

    Of integers, rows and columns are whole words of 32 bits.
    """

    def make(name: str, rows: int, columns: int) -> Weight:
        with torch.device("cpu"):
            return random_weight(name, rows, columns)

    return make


def random_weight(name: str, rows: int, columns: int) -> Weight:
    if name in SCALED:
        return SCALED[name](torch.randn(rows, columns) * 0.05)
    if name in DENSE:
        return (torch.randn(rows, columns) * 0.05).to(DENSE[name])
    form = Format[name]
    if form.block_size == 32:
        packed = gguf.quants.quantize((torch.randn(rows, columns) * 0.05).numpy(), gguf.GGMLQuantizationType[name])
        return PackedTensor(form, (rows, columns), torch.from_numpy(packed))
    data = torch.randint(0, 256, (rows, form.row_bytes(columns)), dtype=torch.uint8)
    blocks = data.view(-1, form.block_bytes)
    for start in _float_bytes(form):
        halves = (torch.rand(len(blocks), 1) * 1e-3 + 1e-4).half()
        blocks[:, start : start + 2] = halves.view(torch.uint8)
    return PackedTensor(form, (rows, columns), data)


def _float_bytes(form: Format) -> list[int]:
    """Where a K format keeps its float16 scales; any other byte may hold anything."""
    return {
        Format.Q2_K: [80, 82],
        Format.Q3_K: [108],
        Format.Q4_K: [0, 2],
        Format.Q5_K: [0, 2],
        Format.Q6_K: [208],
    }[form]
