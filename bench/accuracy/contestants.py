"""Who predicts: our model with any kernels, and llama.cpp beside us on the very same tokens."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from bench.accuracy.text import WINDOW
from bench.peers.llama_cpp import LlamaCpp
from model.batch import Batch, Chunk
from model.inputs import pack
from model.kernels import Kernels
from model.kernels.cpu import CpuKernels, available_cores
from model.loading import Request, load, open_model
from model.runner import Runner

# Shapes: T tokens of a window, V vocabulary

Activations = Literal["int16", "int8"]
KvDtype = Literal["auto", "float32", "float16", "int8"]
KV_GIB = 0.05  # a window's keys and values in fp32 take half of it


class Contestant(Protocol):
    def logits(self, tokens: list[int]) -> Tensor:
        """Of the token after each one of a window, which is read from position 0: float32 [T, V]."""


@dataclass(frozen=True, slots=True)
class Headrace:
    """Our model, in this process."""

    runner: Runner

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> Tensor:
        transformer, cache = self.runner.transformer, self.runner.cache
        chunk = Chunk(tokens, 0, len(tokens), list(range(cache.num_blocks)), len(tokens), sampling=None)
        return transformer.logits(transformer(pack(Batch([chunk]), transformer.kernels.device), cache))


def served(model: Path, activations: Activations = "int16", kv_dtype: KvDtype = "auto") -> Headrace:
    """With the kernels that serve. Raises ValueError where there are none."""
    opened = open_model(_request(model, activations, kv_dtype), _silent)
    if not isinstance(opened.kernels, CpuKernels):
        raise ValueError("this installation has no C++ kernels that could be judged")
    return Headrace(load(opened, opened.plan(), _silent))


def reference(model: Path) -> Headrace:
    """On the dequantised weights, with the kernels that specify all others, and with a cache of fp32."""
    opened = open_model(_request(model, "int16", "float32"), _silent)
    opened = replace(opened, kernels=Kernels(torch.device("cpu"), torch.float32))
    return Headrace(load(opened, opened.plan(), _silent))


def _request(model: Path, activations: Activations, kv_dtype: KvDtype) -> Request:
    return Request(
        model=str(model),
        device="cpu",
        dtype="float32",
        activations=activations,
        kv_dtype=kv_dtype,
        context_length=WINDOW,
        kv_memory=KV_GIB,
        max_sequences=1,
        step_tokens=WINDOW,
        threads=None,
    )


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Peer:
    """llama.cpp, in a process of its own that gets windows and gives logits."""

    process: subprocess.Popen[bytes]

    @classmethod
    @contextmanager
    def running(cls, program: Path, model: Path) -> Iterator["Peer"]:
        """For as long as the context lasts."""
        command = [str(program), str(model), str(WINDOW), str(available_cores())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                yield cls(process)
            finally:
                process.kill()

    def logits(self, tokens: list[int]) -> Tensor:
        assert self.process.stdin is not None, "started with a pipe"
        self.process.stdin.write(np.array(tokens, dtype=np.int32).tobytes())
        self.process.stdin.flush()
        vocabulary = int.from_bytes(self._read(4), sys.byteorder)
        return torch.frombuffer(self._read(4 * len(tokens) * vocabulary), dtype=torch.float32).view(len(tokens), -1)

    def _read(self, size: int) -> bytearray:
        assert self.process.stdout is not None, "started with a pipe"
        data = bytearray(self.process.stdout.read(size))
        if len(data) < size:
            raise SystemExit(f"bench.accuracy: llama.cpp ended with {self.process.wait()}")
        return data


def compile_peer(llama_cpp: LlamaCpp) -> Path:
    """The program that speaks for llama.cpp, built against its library. Seconds."""
    source, program = Path(__file__).with_name("llama_logits.cpp"), llama_cpp.folder / "llama_logits"
    tree, libraries = llama_cpp.source, llama_cpp.programs
    flags = ["-O2", "-std=c++17", f"-I{tree / 'include'}", f"-I{tree / 'ggml' / 'include'}"]
    links = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-lggml", "-lggml-base"]
    subprocess.run(["c++", *flags, str(source), "-o", str(program), *links], check=True)
    return program
