"""Compiles every Triton kernel for a card that is not there, and prints what each needs of it as JSON.

python compile_triton.py 90                     # compute capability 9.0
python compile_triton.py 90 rms_norm activate   # kernels of these names alone
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
from model.kernels.triton.kernels import NUMBERS

TILES = {"TILE_ROWS": matmul.TILE_ROWS, "TILE_COLUMNS": matmul.TILE_COLUMNS}
STORED = {"POSITIONS": 16, "place_stride": 1}  # a key in a row
PAGES = {**STORED, "TILE": attention.TILE, "KEYS": attention.KEYS}
STAGED = {"num_warps": attention.WARPS, "num_stages": attention.STAGES}


def attending(shared: int, head_dim: int = 128, has_scales: bool = False) -> tuple[Any, dict[str, Any]]:
    heads = {"SHARED": shared, "PADDED": shared, "HEAD_DIM": head_dim, "BLOCK_DIM": head_dim, "SPLIT": attention.SPLIT}
    return attention.attend, {**heads, "HAS_SCALES": has_scales, **PAGES, **STAGED}


PACKING = {bits: {"BITS": bits, "GROUP": 32, "HAS_MINIMA": bits == 4} for bits in (0, 4, 8)}
WIDE = {"scales_ptr": "*fp32", "minima_ptr": "*fp32"}
FLOAT8 = {**dict.fromkeys(["w_ptr", "keys_ptr", "values_ptr"], "*u8"), "scales_ptr": "*fp32"}
KERNELS: list[tuple[Any, dict[str, Any]]] = [
    *((rows.rms_norm, {"IS_SUM": is_sum, "BLOCK": 4096}) for is_sum in (False, True)),
    (rows.layer_norm, {"BLOCK": 4096, "HAS_BIAS": True}),
    *(
        (rows.rotate_and_store, {**STORED, "BLOCK": 128, "IS_ROTATED": True, "HAS_SCALES": has, "HEAD_DIM": 128})
        for has in (False, True)
    ),
    (
        rows.rotate_and_store,
        {**STORED, "BLOCK": 128, "IS_ROTATED": True, "HAS_SCALES": True, "HEAD_DIM": 128, "types": FLOAT8},
    ),
    *((rows.activate, {"ACTIVATION": name, "BLOCK": NUMBERS}) for name in ("relu", "gelu", "gelu_tanh", "silu")),
    (rows.gate, {"ACTIVATION": "silu", "BLOCK": NUMBERS}),
    (drawing.argmax, {"BLOCK": drawing.BLOCK}),
    *((drawing.draw, {"IS_MASKED": is_masked, "BLOCK": drawing.BLOCK}) for is_masked in (False, True)),
    *((matmul.product, {**PACKING[0], "HAS_BIAS": True, **TILES, **form}) for form in (matmul.FEW, matmul.MANY)),
    (matmul.product, {**PACKING[0], "HAS_BIAS": False, **TILES, **matmul.MANY, "numbers": "*fp32"}),
    *((matmul.product, {**PACKING[bits], "HAS_BIAS": False, **TILES, **matmul.FEW}) for bits in (4, 8)),
    (matmul.product, {**PACKING[4], "GROUP": 128, "HAS_BIAS": False, **TILES, **matmul.FEW, "types": WIDE}),
    (matmul.product, {**PACKING[8], "GROUP": 128, "HAS_BIAS": False, **TILES, **matmul.FEW, "types": FLOAT8}),
    *((matmul.product_of_each, {**PACKING[bits], "MATRICES": 8, **TILES, **matmul.FEW}) for bits in (0, 4)),
    *((matmul.embed, {**PACKING[bits], "COLUMNS": NUMBERS}) for bits in (4, 8)),
    *(attending(shared) for shared in (1, 4, 8)),
    attending(4, has_scales=True),
    (attention.attend, {**attending(4, has_scales=True)[1], "types": FLOAT8}),
    attending(2, head_dim=256),
    (attention.combine, {"HEAD_DIM": 128, "BLOCK_DIM": 128, "SPLIT": attention.SPLIT}),
]
POINTERS = {
    **dict.fromkeys(["weight_ptr", "cos_ptr", "sin_ptr", "partial_ptr"], "*fp32"),
    **dict.fromkeys(["slots_ptr", "ids_ptr", "best_ptr", "tables_ptr", "tiles_ptr", "positions_ptr"], "*i64"),
    **dict.fromkeys(["top_k_ptr", "seed_ptr", "position_ptr", "order_ptr", "counts_ptr"], "*i64"),
    **dict.fromkeys(["temperature_ptr", "top_p_ptr", "min_p_ptr"], "*fp64"),
    **dict.fromkeys(["scales_ptr", "minima_ptr"], "*fp16"),
    "allowed_ptr": "*i1",
}
INTEGERS = {"keys_ptr": "*i8", "values_ptr": "*i8", "scales_ptr": "*fp32"}  # of a cache
ABSENT = {  # what is None at a launch where a constant is 0 or False
    "BITS": ["scales_ptr", "minima_ptr"],
    "HAS_MINIMA": ["minima_ptr"],
    "HAS_BIAS": ["bias_ptr"],
    "HAS_SCALES": ["scales_ptr"],
    "IS_ROTATED": ["cos_ptr", "sin_ptr"],
    "IS_SUM": ["other_ptr", "sum_ptr"],
    "IS_MASKED": ["allowed_ptr"],
}
LOGITS = (drawing.argmax, drawing.draw)
SIZES = ("width", "columns", "out")
FLOATS = ("eps", "scale", "softcap", "limit")


def signature(kernel: Any, constants: dict[str, Any], numbers: str, special: dict[str, str]) -> dict[str, str]:
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in special:
            types[name] = special[name]
        elif name == "w_ptr":
            types[name] = {0: numbers, 4: "*u8", 8: "*i8"}[constants["BITS"]]
        elif constants.get("HAS_SCALES") and name in INTEGERS:
            types[name] = INTEGERS[name]
        elif (name == "x_ptr" and kernel in LOGITS) or (kernel, name) == (rows.layer_norm, "bias_ptr"):
            types[name] = "*fp32"
        elif name.endswith("_ptr"):
            types[name] = POINTERS.get(name, numbers)
        else:
            types[name] = "fp32" if name in FLOATS else "i32"
    return types


def alignment(kernel: Any, constants: dict[str, Any]) -> dict[tuple[int], list[list[Any]]]:
    """As at a launch: addresses of tensors and sizes of matrices are multiples of 16."""
    names = kernel.arg_names
    aligned = [i for i, name in enumerate(names) if name.endswith(("_ptr", "_stride")) or name in SIZES]
    return {(i,): [["tt.divisibility", 16]] for i in aligned if names[i] not in constants}


def compiled(capability: int, names: list[str]) -> Iterator[dict[str, Any]]:
    target = GPUTarget("cuda", capability, 32)
    for kernel, given in (case for case in KERNELS if not names or case[0].__name__ in names):
        options = {name: value for name, value in given.items() if name.startswith("num_")}
        numbers = given.get("numbers", "*bf16")  # what the model computes in
        special = given.get("types", {})  # of pointers, where they are not as `signature` has them
        constants = {name: value for name, value in given.items() if name not in (*options, "numbers", "types")}
        name = f"{kernel.__name__} {numbers} " + " ".join(str(value) for value in constants.values())
        absent = [pointer for constant in ABSENT if not constants.get(constant, True) for pointer in ABSENT[constant]]
        constants |= dict.fromkeys(pointer for pointer in absent if pointer in kernel.arg_names)
        types, aligned = signature(kernel, constants, numbers, special), alignment(kernel, constants)
        source = ASTSource(kernel, types, constexprs=constants, attrs=aligned)
        result = triton.compile(source, target=target, options=options)
        products = sorted(set(re.findall(r"mma\S*\.(m\d+n\d+k\d+\S*)", result.asm["ptx"])))
        yield {"name": name, "shared": result.metadata.shared, "products": products, **resources(result.asm["cubin"])}


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
    print(json.dumps(list(compiled(int(sys.argv[1]), sys.argv[2:]))))
