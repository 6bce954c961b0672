"""What everything ran on: the card and its driver, the libraries, and which Headrace."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from bench.gpu_check.loading import opened
from bench.gpu_check.report import table
from bench.gpu_check.section import ROOT, Options

LIBRARIES = ("torch", "triton", "vllm", "flash-attn", "flash-attn-4")
GIB = 1024**3


def check(options: Options) -> Iterator[str]:
    model = opened(options)
    rows = [["what", "is"], ["Headrace", f"{version('headrace')}, {_commit()}"], ["model", options.model]]
    rows += [["kernels", model.kernels_name], ["computes in", _name(model.kernels.dtype)]]
    rows.append(["KV cache in", _name(model.kv_dtype)])
    rows += _card() if options.device == "cuda" else [["processor", f"{os.cpu_count()} cores, {platform.machine()}"]]
    rows += [[name, _version(name)] for name in LIBRARIES]
    rows.append(["Python, system", f"{platform.python_version()}, {platform.platform()}"])
    yield table(rows)


def _card() -> list[list[str]]:
    card = torch.cuda.get_device_properties(0)
    rows = [
        ["card", f"{card.name}, {torch.cuda.device_count()} of them"],
        ["compute capability", f"{card.major}.{card.minor}"],
        ["memory", f"{card.total_memory / GIB:.1f} GiB"],
        ["multiprocessors", str(card.multi_processor_count)],
        ["second-level cache", f"{card.L2_cache_size / 2**20:.0f} MiB"],
        ["CUDA of torch", str(torch.version.cuda)],
    ]
    asked = "driver_version,power.limit,clocks.max.sm,clocks.max.memory"
    if program := shutil.which("nvidia-smi"):
        command = [program, f"--query-gpu={asked}", "--format=csv,noheader", "--id=0"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        rows.append(["driver, power limit, clocks (SM, memory)", answer or "nvidia-smi does not tell"])
    return rows


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
    return f"commit {described}"
