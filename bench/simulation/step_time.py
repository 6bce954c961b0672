"""How long a step takes, by what is in it: a linear model, and how it is fitted to steps that were measured."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import msgspec
import numpy as np

from model.batch import Batch


@dataclass(frozen=True, slots=True)
class Shape:
    """What the time of a step depends on."""

    decoding: int  # chunks of one token
    context: int  # positions that these attend to, in sum
    prompt: int  # tokens of longer chunks
    pairs: int  # a token of those and a position that it attends to

    @classmethod
    def of(cls, batch: Batch) -> Self:
        decoding = context = prompt = pairs = 0
        for chunk in batch.chunks:
            tokens = chunk.stop - chunk.start
            if tokens == 1:
                decoding += 1
                context += chunk.stop
            else:
                prompt += tokens
                pairs += tokens * (chunk.start + chunk.stop + 1) // 2
        return cls(decoding, context, prompt, pairs)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step: `base`, and so many for each unit of its shape."""

    base: float
    decoding: float
    context: float
    prompt: float
    pairs: float

    def __call__(self, batch: Batch) -> float:
        shape = Shape.of(batch)
        return (
            self.base
            + self.decoding * shape.decoding
            + self.context * shape.context
            + self.prompt * shape.prompt
            + self.pairs * shape.pairs
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """How far a fit is from what was measured; errors are shares of the measured time."""

    steps: int
    r2: float
    median_error: float
    p95_error: float
    largest_error: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Step times as they are kept: what was measured on what, and what came out."""

    machine: str
    model: str
    threads: int
    kv_memory: float  # GiB
    kv_blocks: int  # that it holds
    max_sequences: int
    step_tokens: int
    context_rate: float
    context_length: int
    time: StepTime
    quality: Quality


def fit(shapes: Sequence[Shape], seconds: Sequence[float]) -> tuple[StepTime, Quality]:
    """The model whose relative errors have the least squares, so that small steps count as much as large ones.

    No part of a step takes less than no time: a coefficient that would be negative is left out, the worst one first.
    """
    measured = np.array(seconds)
    units = np.array([[1, *asdict(shape).values()] for shape in shapes], dtype=float)
    weighted = units / measured[:, None]
    scale = np.linalg.norm(weighted, axis=0) + (weighted == 0).all(axis=0)
    kept = list(range(units.shape[1]))
    coefficients = np.zeros(units.shape[1])
    while True:
        solution = np.linalg.lstsq(weighted[:, kept] / scale[kept], np.ones(len(measured)), rcond=None)[0]
        if solution.min() >= 0:
            break
        kept.pop(int(solution.argmin()))
    coefficients[kept] = solution / scale[kept]
    return StepTime(*map(float, coefficients)), _quality(units @ coefficients, measured)


def _quality(predicted: np.ndarray, measured: np.ndarray) -> Quality:
    errors = np.abs(predicted / measured - 1)
    r2 = 1 - ((predicted - measured) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()
    return Quality(
        len(measured), float(r2), float(np.median(errors)), float(np.quantile(errors, 0.95)), float(errors.max())
    )
