"""Who predicts: our model with any kernels, and llama.cpp beside us on the very same tokens."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bench.accuracy.text import WINDOW
from bench.peers.llama_cpp import LlamaCpp
from model.batch import Batch, Chunk
from model.checkpoints.checkpoint import open_checkpoint
from model.families import describe
from model.inputs import pack
from model.kernels import Kernels
from model.kernels.cpu import available_cores, load
from model.kv_cache import BLOCK_SIZE, KVCache
from model.transformer import Transformer
from model.weights import Weights

# Shapes: T tokens of a window, V vocabulary


class Contestant(Protocol):
    def logits(self, tokens: list[int]) -> Tensor:
        """Of the token after each one of a window, which is read from position 0: float32 [T, V]."""


class Headrace:
    """Our model, in this process."""

    def __init__(self, model: Path, kernels: Kernels) -> None:
        checkpoint = open_checkpoint(model)
        description = describe(checkpoint.kind, checkpoint.metadata, {info.name for info in checkpoint.infos})
        config = description.config
        self.transformer = Transformer(config, Weights(dict(checkpoint.tensors()), description.names), kernels)
        self.blocks = list(range(-(-WINDOW // BLOCK_SIZE)))
        self.cache = KVCache(config, len(self.blocks), kernels.dtype, kernels.device)

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> Tensor:
        chunk = Chunk(tokens, 0, len(tokens), self.blocks, len(tokens), sampling=None)
        inputs = pack(Batch([chunk]), self.cache.layers[0].keys.device)
        return self.transformer.logits(self.transformer(inputs, self.cache))


def plain_torch(model: Path, dtype: torch.dtype) -> Headrace:
    """On the dequantised weights, with the kernels that specify all others."""
    return Headrace(model, Kernels(torch.device("cpu"), dtype))


def fast(model: Path, activations: str) -> Headrace:
    """With the kernels that serve."""
    kernels = load(activations)
    if kernels is None:
        raise SystemExit("bench.accuracy: this installation has no C++ kernels to be judged")
    return Headrace(model, kernels)


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
    subprocess.run(["c++", *flags, source, "-o", program, *links], check=True)
    return program
