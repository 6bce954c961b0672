"""What the parity tests share: tiny models with lively random weights, and ours opened from their files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers
from torch import Tensor

from model.batch import Batch, Chunk
from model.checkpoints import open_checkpoint
from model.config import ModelConfig
from model.families import describe
from model.inputs import pack
from model.kernels import Kernels, select
from model.kv_cache import BLOCK_SIZE, KVCache
from model.transformer import Transformer
from model.weights import Matrix, Names, Weights

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Engine:
    """A model of ours, loaded, with everything that a test may want to change and build again."""

    transformer: Transformer
    tensors: dict[str, Matrix]
    names: Names

    @property
    def config(self) -> ModelConfig:
        return self.transformer.config

    @torch.inference_mode()
    def logits(self, sequences: list[list[int]], cuts: list[int] | None = None, shift: int = 0) -> list[Tensor]:
        """Logits of every position, all sequences in one batch a step, in chunks that end where `cuts` says.

        Block tables are shuffled, and blocks hold NaN until something is stored in them. `shift` misplaces the rows of
        all chunks but the first; were all misplaced, rotary positions would rightly not notice.
        """
        sizes = [-(-len(tokens) // BLOCK_SIZE) for tokens in sequences]
        tables = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(1)).split(sizes)
        cache = KVCache(self.config, sum(sizes), torch.float32, CPU)
        cache.poison(list(range(sum(sizes))))
        found: list[list[Tensor]] = [[] for _ in sequences]
        for start, stop in _steps(sequences, cuts or []):
            indices = [i for i, tokens in enumerate(sequences) if start < len(tokens)]
            chunks = [
                Chunk(tokens, start, min(stop, len(tokens)), tables[i].tolist(), len(tokens), None)
                for i, tokens in enumerate(sequences)
                if i in indices
            ]
            inputs = pack(Batch(chunks), CPU)
            inputs.positions.add_(shift if start else 0)
            rows = self.transformer.logits(self.transformer(inputs, cache))
            for i, part in zip(indices, rows.split([len(chunk) for chunk in chunks]), strict=True):
                found[i].append(part)
        return [torch.cat(parts) for parts in found]


def _steps(sequences: list[list[int]], cuts: list[int]) -> list[tuple[int, int]]:
    longest = max(map(len, sequences))
    ends = [*(cut for cut in cuts if cut < longest), longest]
    return list(zip([0, *ends], ends, strict=False))


def _build(config: ModelConfig, tensors: dict[str, Matrix], names: Names) -> Engine:
    return Engine(Transformer(config, Weights(tensors, names), Kernels(CPU, torch.float32)), tensors, names)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are slower on many threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def build() -> Callable[[ModelConfig, dict[str, Matrix], Names], Engine]:
    """Our model from features and tensors, which a test may have changed."""
    return _build


@pytest.fixture(scope="session")
def load() -> Callable[..., Engine]:
    """Our model from a file or folder, every tensor accounted for, on the reference kernels or others."""

    def load(path: Path, kernels: Kernels | None = None) -> Engine:
        checkpoint = open_checkpoint(path)
        tensors = dict(checkpoint.tensors())
        description = describe(checkpoint.kind, checkpoint.metadata, tensors.keys())
        weights = Weights(tensors, description.names)
        transformer = Transformer(description.config, weights, kernels or Kernels(CPU, torch.float32))
        weights.finish(description.ignorable)
        return Engine(transformer, tensors, description.names)

    return load


@pytest.fixture(scope="session")
def lively() -> Callable[..., transformers.PreTrainedModel]:
    return families.lively


@pytest.fixture(scope="session")
def theirs() -> Callable[[transformers.PreTrainedModel, list[list[int]]], list[Tensor]]:
    """Logits of every position by transformers, one sequence at a time."""

    @torch.inference_mode()
    def theirs(model: transformers.PreTrainedModel, sequences: list[list[int]]) -> list[Tensor]:
        return [model(torch.tensor([tokens]), use_cache=False).logits[0].float() for tokens in sequences]

    return theirs


@pytest.fixture(scope="session")
def sequences() -> list[list[int]]:
    """Longer than any window of the tests, over several KV blocks, one exactly full and one a token beyond."""
    draw = torch.Generator().manual_seed(2)
    return [torch.randint(0, 96, (length,), generator=draw).tolist() for length in (45, 32, 17, 1)]


@pytest.fixture(scope="session")
def agree(sequences: list[list[int]]) -> Callable[..., None]:
    """Asserts parity in one chunk and in chunks that end at block boundaries and beside them."""

    def agree(engine: Engine, want: list[Tensor], tolerance: float = 1e-4) -> None:
        assert max(float(logits.abs().max()) for logits in want) > 3, "such logits would hide faults"
        for cuts in ([], [1, 15, 16, 17, 31, 33, 44]):
            for ours, reference in zip(engine.logits(sequences, cuts), want, strict=True):
                error = float((ours - reference).abs().max())
                assert error <= tolerance, f"{engine.config.family} with cuts {cuts} is off by {error}"

    return agree


@pytest.fixture(scope="session")
def parity(load: Any, theirs: Any, agree: Any, sequences: Any) -> Callable[..., None]:
    """Asserts that our model of the file says what the model of transformers' says, also on the fastest kernels."""

    def parity(path: Path, model: transformers.PreTrainedModel, fast_tolerance: float = 1e-4) -> None:
        want = theirs(model, sequences)
        agree(load(path), want)
        agree(load(path, select(CPU, torch.float32)), want, fast_tolerance)

    return parity
