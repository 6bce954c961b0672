"""A model shared by ranks that are threads of this process: what passes between them is laid down at a barrier."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from model.batch import Batch, Chunk, Sample, Sampling
from model.loading import OpenModel, Request, load, open_model
from model.parallel import ALONE, Group, Ranks
from model.runner import Runner

Result = TypeVar("Result")

PROMPTS = [[(5 * place + 7 * length) % 96 for place in range(length)] for length in (1, 15, 16, 40)]
STEPS = 12


@dataclass(slots=True)
class Exchange:
    """Where threads lay down their parts and take all."""

    size: int
    parts: list[Tensor] = field(init=False)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.parts = [Tensor()] * self.size
        self.barrier = threading.Barrier(self.size, timeout=60)

    def all(self, rank: int, part: Tensor) -> list[Tensor]:
        self.parts[rank] = part
        self.barrier.wait()
        shared = list(self.parts)
        self.barrier.wait()  # nobody lays down the next before all have taken these
        return shared


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadGroup(Group):
    """A group whose parts go over no wire."""

    exchange: Exchange

    def _all(self, part: Tensor) -> list[Tensor]:
        return self.exchange.all(self.rank, part)


def opened(path: Path, ranks: Ranks = ALONE, **changes: Any) -> OpenModel:
    wanted = {"model": str(path), "device": "cpu", "dtype": "auto", "activations": "int16", "kv_dtype": "auto"}
    limits = {"context_length": None, "kv_memory": 0.01, "max_sequences": 8, "step_tokens": 128, "threads": None}
    return open_model(Request(**wanted | limits | changes), lambda stage, done, total: None, ranks)


def made(model: OpenModel) -> Runner:
    return load(model, model.plan(), lambda stage, done, total: None)


def on_ranks(path: Path, size: int, work: Callable[[Runner], Result], **changes: Any) -> list[Result]:
    """What `work` gives on each of so many ranks, which run side by side."""
    exchange = Exchange(size)

    def run(rank: int) -> Result:
        group = ThreadGroup(rank, size, rank, size, device=torch.device("cpu"), exchange=exchange)
        try:
            return work(made(opened(path, group, **changes)))
        except BaseException:
            exchange.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


def generate(runner: Runner) -> list[list[Sample]]:
    """Greedy answers to all prompts, side by side."""
    texts, answers = [list(prompt) for prompt in PROMPTS], [[] for _ in PROMPTS]
    computed = [0] * len(PROMPTS)
    for _ in range(STEPS):
        result = runner.run(Batch([chunk(place, text, computed[place]) for place, text in enumerate(texts)]))
        for place, samples in enumerate(result.samples):
            assert not isinstance(samples, str), samples
            computed[place] = len(texts[place])
            texts[place].append(samples[0].token)
            answers[place].append(samples[0])
    return answers


def chunk(place: int, tokens: list[int], start: int) -> Chunk:
    blocks = list(range(place * 4, place * 4 + 4))
    length = len(PROMPTS[place])
    return Chunk(tokens, start, len(tokens), blocks, length, Sampling(temperature=0.0, top_logprobs=3))


def tokens(answers: list[list[Sample]]) -> list[list[int]]:
    return [[sample.token for sample in answer] for answer in answers]


def agree(path: Path, sizes: tuple[int, ...]) -> None:
    """The same tokens on so many ranks as on one, on every rank, and nearly the same probabilities."""
    alone = generate(made(opened(path)))
    for size in sizes:
        together, *others = on_ranks(path, size, generate)
        assert tokens(together) == tokens(alone)
        assert all(other == together for other in others), "ranks have parted"
        for ours, theirs in zip(chain(*together), chain(*alone), strict=True):
            assert abs(ours.logprobs.chosen - theirs.logprobs.chosen) < 2e-3
