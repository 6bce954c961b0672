"""A recorded step says, bit for bit, what the eager one says; what cannot be recorded runs eagerly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor

from model.batch import Batch, Chunk, Sampling, StepResult
from model.kernels.cpu import CpuKernels
from model.kernels.reference import Span
from model.kv_cache import KVCache
from model.loading import OpenModel, Request, load, open_model
from model.runner import Runner
from model.transformer import Transformer
from model.weights import Weights

STEP_TOKENS = 64


def opened(folder: Path, graphs: bool = True) -> OpenModel:
    request = Request(
        model=str(folder),
        device="cpu",
        dtype="float32",
        activations="int16",
        kv_dtype="auto",
        context_length=None,
        kv_memory=0.01,
        max_sequences=8,
        step_tokens=STEP_TOKENS,
        threads=2,
        graphs=graphs,
    )
    model = open_model(request, lambda stage, done, total: None)
    assert isinstance(model.kernels, CpuKernels)
    return model


def make_runner(folder: Path) -> Runner:
    model = opened(folder)
    weights = Weights(dict(model.checkpoint.tensors()), model.description.names)
    transformer = Transformer(model.config, weights, model.kernels)
    return Runner(transformer, KVCache(model.config, 32, torch.float32, torch.device("cpu")))


def chunk(length: int, start: int, blocks: list[int]) -> Chunk:
    tokens = [(7 * length + 5 * i) % 250 for i in range(length)]
    return Chunk(tokens, start, length, blocks, length, Sampling(temperature=0.0, top_logprobs=5))


def results(runner: Runner) -> list[StepResult]:
    """Prompts, prompts and decodes mixed, and more rows than were recorded."""
    steps = [
        [chunk(1, 0, [9])],
        [chunk(20, 0, [3, 4]), chunk(17, 0, [1, 0]), chunk(5, 0, [7])],
        [chunk(21, 20, [3, 4]), chunk(40, 17, [1, 0, 2]), chunk(6, 5, [7])],
        [chunk(2, 1, [9])],
        [chunk(90, 0, list(range(10, 16)))],
    ]
    return [runner.run(Batch(chunks)) for chunks in steps]


def test_a_recorded_step_has_the_bits_of_the_eager_one(tiny_model: Path) -> None:
    eager, recorded = make_runner(tiny_model), make_runner(tiny_model)
    recorded.record(STEP_TOKENS)
    assert recorded.recording is not None
    assert [recorded.recording.padded(rows, 9) for rows in (1, STEP_TOKENS, STEP_TOKENS + 1)] == [1, STEP_TOKENS, None]
    assert results(recorded) == results(eager)


def test_what_does_not_go_through_the_kernels_is_noticed_and_runs_eagerly(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Transformer.forward

    def with_torch(self: Transformer, rows: tuple[Tensor, ...], spans: list[Span], cache: KVCache) -> Tensor:
        """An output that hangs on the ids by way of torch alone."""
        return forward(self, rows, spans, cache) * (1 + rows[0][:, None])

    monkeypatch.setattr(Transformer, "forward", with_torch)
    eager, recorded = make_runner(tiny_model), make_runner(tiny_model)
    recorded.record(STEP_TOKENS)
    assert recorded.recording is None
    assert results(recorded) == results(eager)


def test_a_mixture_of_experts_is_not_recorded(tmp_path: Path, lively: Any) -> None:
    """Its products have the rows of some tokens only, which a replay could not know."""
    lively(FAMILIES["mixtral"]()).save_pretrained(tmp_path)
    eager, warm = make_runner(tmp_path), make_runner(tmp_path)
    warm.record(STEP_TOKENS)
    assert warm.recording is None
    step = Batch([Chunk(list(range(20)), 0, 20, [3, 4], 20, Sampling(temperature=0.0, top_logprobs=5))])
    assert warm.run(step) == eager.run(step)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_model_is_recorded_as_it_is_loaded_unless_that_is_declined(tiny_model: Path, graphs: bool) -> None:
    model = opened(tiny_model, graphs)
    runner = load(model, model.plan(), lambda stage, done, total: None)
    assert (runner.recording is not None) == graphs
