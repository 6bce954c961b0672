"""Compiles every Triton kernel for a card that is not there, and prints what each needs of it as JSON.

python compile_triton.py 90
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from model.kernels.triton import attention, drawing, matmul, rows
from model.kernels.triton.kernels import NUMBERS, TILE_COLUMNS, TILE_OUT, TILE_ROWS

TILES = {"TILE_ROWS": TILE_ROWS, "TILE_OUT": TILE_OUT, "TILE_COLUMNS": TILE_COLUMNS}
PAGES = {"POSITIONS": 16, "TILE": attention.TILE, "KEYS": attention.KEYS}
HEAD = {"HEAD_DIM": 128, "BLOCK_DIM": 128, "SPLIT": attention.SPLIT}
KERNELS: list[tuple[Any, dict[str, Any]]] = [
    (rows.rms_norm, {"BLOCK": 4096}),
    (rows.layer_norm, {"BLOCK": 4096, "HAS_BIAS": True}),
    (rows.rotate, {"HALF": 64, "BLOCK": 64}),
    (rows.store, {"HEAD_DIM": 128, "POSITIONS": 16, "BLOCK": 128}),
    *((rows.activate, {"ACTIVATION": name, "BLOCK": NUMBERS}) for name in ("relu", "gelu", "gelu_tanh", "silu")),
    (rows.gate, {"ACTIVATION": "silu", "BLOCK": NUMBERS}),
    (drawing.argmax, {"BLOCK": drawing.BLOCK}),
    (matmul.dense, {"HAS_BIAS": True, **TILES}),
    *((matmul.packed, {"BITS": bits, "HAS_MINIMA": bits == 4, "HAS_BIAS": False, **TILES}) for bits in (4, 8)),
    *((matmul.embed, {"BITS": bits, "HAS_MINIMA": bits == 4, "COLUMNS": NUMBERS}) for bits in (4, 8)),
    *(
        (
            attention.attend,
            {"SHARED": shared, "PADDED": shared, **PAGES, **HEAD},
        )
        for shared in (1, 4, 8)
    ),
    (attention.combine, HEAD),
]
POINTERS = {
    **dict.fromkeys(["weight_ptr", "cos_ptr", "sin_ptr", "partial_ptr"], "*fp32"),
    **dict.fromkeys(["slots_ptr", "ids_ptr", "best_ptr", "tables_ptr", "tiles_ptr", "positions_ptr"], "*i64"),
    **dict.fromkeys(["scales_ptr", "minima_ptr"], "*fp16"),
}
SIZES = ("width", "columns", "out")
FLOATS = ("eps", "scale", "softcap")


def signature(kernel: Any, constants: dict[str, Any]) -> dict[str, str]:
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name == "codes_ptr":
            types[name] = "*u8" if constants["BITS"] == 4 else "*i8"
        elif (kernel, name) in ((rows.layer_norm, "bias_ptr"), (drawing.argmax, "x_ptr")):
            types[name] = "*fp32"
        elif name.endswith("_ptr"):
            types[name] = POINTERS.get(name, "*bf16")
        else:
            types[name] = "fp32" if name in FLOATS else "i32"
    return types


def alignment(kernel: Any, constants: dict[str, Any]) -> dict[tuple[int], list[list[Any]]]:
    """As at a launch: addresses of tensors and sizes of matrices are multiples of 16."""
    names = kernel.arg_names
    aligned = [i for i, name in enumerate(names) if name.endswith(("_ptr", "_stride")) or name in SIZES]
    return {(i,): [["tt.divisibility", 16]] for i in aligned if names[i] not in constants}


def compiled(capability: int) -> Iterator[dict[str, Any]]:
    target = GPUTarget("cuda", capability, 32)
    for kernel, constants in KERNELS:
        types, aligned = signature(kernel, constants), alignment(kernel, constants)
        source = ASTSource(kernel, types, constexprs=constants, attrs=aligned)
        options = {"num_warps": attention.WARPS, "num_stages": attention.STAGES} if kernel is attention.attend else {}
        result = triton.compile(source, target=target, options=options)
        name = f"{kernel.__name__} " + " ".join(str(value) for value in constants.values())
        yield {"name": name, "shared": result.metadata.shared, **resources(result.asm["cubin"])}


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes that did not fit into them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(found["REG"]), "spilled": int(found["STACK"]) + int(found["LOCAL"])}


if __name__ == "__main__":
    print(json.dumps(list(compiled(int(sys.argv[1])))))
