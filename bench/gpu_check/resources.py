"""What every Triton kernel takes of a multiprocessor, compiled for the card: registers, spills, shared memory."""

import os
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import torch

from bench.gpu_check.report import table
from bench.gpu_check.section import ROOT, Failed, Options

COMPILER = ROOT / "tests/kernels/compile_triton.py"
ABSENT_CARD = 90  # what a dry run compiles for
QUICK = ("gate",)


class Compiled(msgspec.Struct):
    name: str
    registers: int  # of a thread
    spilled: int  # bytes of a thread that did not fit into them
    shared: int  # bytes of a program


def check(options: Options) -> Iterator[str]:
    capability = ABSENT_CARD
    if options.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    command = [sys.executable, "-P", str(COMPILER), str(capability), *(QUICK if options.quick else ())]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        print(run.stderr, file=sys.stderr)
        raise Failed((run.stderr.strip() or "it said nothing").splitlines()[-1])
    kernels = msgspec.json.decode(run.stdout, type=list[Compiled])
    yield f"Compiled for sm_{capability}, for sizes of Llama 3's; what follows a name are its constants."
    yield table([["kernel", "registers", "spilled, bytes", "shared memory, bytes"], *map(_row, kernels)])


def _row(kernel: Compiled) -> list[str]:
    return [f"`{kernel.name}`", *map(str, (kernel.registers, kernel.spilled, kernel.shared))]
