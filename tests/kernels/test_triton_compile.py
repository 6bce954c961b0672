"""Every Triton kernel is compiled for real cards, which need not be there: it lowers, fits, and spills no registers."""

import json
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # of a program; CUDA C++ Programming Guide, table 27

FRAME_BYTES = 8  # that the assembler may take although registers are left; what does not fit comes in hundreds


Kernels = list[dict[str, Any]]


def compiled(capability: int, cache: Path) -> Kernels:
    script = Path(__file__).with_name("compile_triton.py")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cache), "TRITON_CACHE_DIR": str(cache)}
    run = subprocess.run(
        [sys.executable, "-P", script, str(capability)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    kernels: Kernels = json.loads(run.stdout)
    return kernels


@pytest.fixture(scope="module")
def compiling(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Future[Kernels]]:
    """All cards at once, as each is seconds of one core."""
    with ThreadPoolExecutor() as threads:
        return {card: threads.submit(compiled, card, tmp_path_factory.mktemp("cache")) for card in SHARED_BYTES}


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_compile_for(capability: int, compiling: dict[int, Future[Kernels]]) -> None:
    kernels = compiling[capability].result()
    assert kernels
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_BYTES[capability], kernel
        assert kernel["spilled"] <= FRAME_BYTES, kernel
    # The instruction's rows and columns enter a sum, its outputs do not; for sm_100 none of them is named.
    names = ("product *bf16", "product_of_each *bf16")
    products = [kernel["products"] for kernel in kernels if kernel["name"].startswith(names)]
    assert len({re.sub(r"n\d+", "", str(found)) for found in products}) == 1, "sums of few and many rows differ"
