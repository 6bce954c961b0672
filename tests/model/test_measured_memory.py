"""The KV cache takes what the largest step leaves, as it was measured, and no step takes more than that one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from fake_streams import FakeStreams

from model.batch import Batch, Chunk, Reading, Sampling
from model.kernels import Kernels
from model.kernels.reference import AttentionShape, LayerCache, Span
from model.kernels.triton import TritonKernels
from model.kernels.triton.attention import SPLIT
from model.kv_cache import BLOCK_SIZE
from model.loading import OpenModel, Request, load, open_model
from model.memory import NotEnoughMemory, step_bytes
from model.runner import Runner

CPU = torch.device("cpu")
FREE, LEFT = 1 << 24, 1 << 19  # bytes before and after loading
LIMITS = {"max_sequences": 6, "step_tokens": 40}


@pytest.fixture
def model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> OpenModel:
    """On torch's kernels, of which every tensor is weighed."""
    monkeypatch.setattr("model.loading.free_memory", lambda device: FREE)
    request = Request(
        model=str(tiny_model),
        device="cpu",
        dtype="float32",
        activations="int16",
        kv_dtype="float32",
        context_length=64,
        kv_memory=None,
        threads=1,
        **LIMITS,
    )
    kernels = Kernels(CPU, torch.float32)
    kernels.streams = FakeStreams()
    return replace(open_model(request, lambda *_: None), kernels=kernels)


def loaded(model: OpenModel, monkeypatch: pytest.MonkeyPatch) -> Runner:
    planned = model.plan()
    with monkeypatch.context() as context:
        context.setattr("model.loading.free_memory", lambda device: LEFT)
        return load(model, planned, lambda *_: None)


def streams(model: OpenModel) -> FakeStreams:
    assert isinstance(model.kernels.streams, FakeStreams)
    return model.kernels.streams


def test_the_cache_takes_its_share_of_what_the_measured_step_leaves(
    model: OpenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = loaded(model, monkeypatch)
    memory = runner.memory
    assert memory is not None
    assert memory.step == streams(model).peaks[0]
    assert 0 < memory.step < model.plan().step
    assert memory.free == LEFT + memory.weights
    assert memory.num_blocks == runner.cache.num_blocks == int((LEFT - memory.step) * 0.25) // memory.block - 1


def test_a_step_that_holds_more_leaves_fewer_blocks(model: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lean, run = loaded(model, monkeypatch).memory, Runner._forward
    held = 1 << 17

    def wasteful(self: Runner, *given: Any) -> torch.Tensor:
        waste = torch.empty(held, dtype=torch.uint8)
        return run(self, *given) + 0 * waste[0]

    monkeypatch.setattr(Runner, "_forward", wasteful)
    fat = loaded(model, monkeypatch).memory
    assert lean is not None
    assert fat is not None
    assert fat.step > lean.step + held // 2
    assert fat.num_blocks < lean.num_blocks


def test_no_step_takes_more_than_the_measured_one(model: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, draw = loaded(model, monkeypatch), Random(5)
    assert runner.memory is not None
    peaks = [streams(model).peak(partial(runner.run, random_step(draw))) for _ in range(60)]
    assert max(peaks) <= runner.memory.step
    assert max(peaks) > runner.memory.step / 4


def random_step(draw: Random) -> Batch:
    """Within the limits, of every kind; in which blocks it lies makes no difference to memory."""
    left, chunks = LIMITS["step_tokens"], []
    for _ in range(draw.randint(1, LIMITS["max_sequences"])):
        rows = draw.choice([1, draw.randint(1, left)])
        stop = draw.randint(rows, 64)
        sampling = draw.choice([Sampling(), Sampling(top_p=0.5, top_logprobs=20), Sampling(repetition_penalty=1.5)])
        reading = draw.choice([None, Reading(start=stop - rows), Reading(start=stop - rows, top_logprobs=20)])
        tokens = [draw.randrange(250) for _ in range(stop)]
        chunks.append(Chunk(tokens, stop - rows, stop, [0, 1, 2, 3], stop, sampling, reading=reading))
        left -= rows
        if not left:
            break
    return Batch(chunks)


def test_what_the_largest_step_leaves_no_room_for_is_an_error_that_names_the_options(
    model: OpenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Callable[[], object]) -> int:
        raise torch.OutOfMemoryError("as the test asked for")

    monkeypatch.setattr(model.kernels.streams, "peak", full)
    with pytest.raises(NotEnoughMemory, match="step-tokens 40 with max-sequences 6 and contexts of 64 tokens take"):
        loaded(model, monkeypatch)


@pytest.mark.parametrize("kind", [Kernels, TritonKernels])
def test_attention_holds_no_more_than_it_says(kind: type[Kernels]) -> None:
    kernels, context_length, rows = kind(CPU, torch.float32), SPLIT + 40, 33
    blocks = -(-context_length // BLOCK_SIZE)
    shape = (blocks, 1, BLOCK_SIZE, 16)
    keys = torch.zeros(shape).transpose(2, 3) if kernels.are_keys_in_rows else torch.zeros(blocks, 1, 16, BLOCK_SIZE)
    cache, spans = LayerCache(keys, torch.zeros(shape)), [Span(0, rows, context_length - rows, torch.arange(blocks))]
    q_THd = torch.zeros(rows, 2, 16)
    said = kernels.attention_bytes(rows, 2, 16, context_length)
    held = FakeStreams().peak(lambda: kernels.attention(q_THd, cache, spans, AttentionShape(1.0, None, None)))
    assert said / 4 < held - q_THd.nbytes
    assert held <= 2 * said


def test_scores_count_only_where_they_are_held(model: OpenModel) -> None:
    limits = replace(model.limits, context_length=1 << 17)
    torchs, tritons = (step_bytes(model.config, limits, kind(CPU, torch.float32)) for kind in (Kernels, TritonKernels))
    assert tritons < torchs / 10
