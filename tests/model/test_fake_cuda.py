"""A whole step runs with CUDA tensors in bf16 on a machine without a GPU, and fails where devices are mixed.

Fake tensors have shapes, types and devices but no values, and fail on a host that asks for one: so it shows where the
host waits for the device. What a card says of its choices is made up. Triton's kernels are told where they would be
launched, and their graphs where they would be captured. How those that are not plain are chosen, and
which experts, is walked up to the first value.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from fake_card import CUDA, AllWeights, CardKernels, FakeRunner, MadeUp, fake_card
from fake_streams import HostSync
from tiny_configs import GEMMA, GPT2, LLAMA, PAPER
from torch import Tensor

from model.batch import Batch, Chunk, Sample, Sampling
from model.config import Experts, ModelConfig, Rope, YarnScaling
from model.experts import MixtureOfExperts
from model.inputs import Inputs, pack
from model.kernels import Kernels
from model.kernels.drawing import weights
from model.kernels.triton import TritonKernels
from model.kv_cache import KVCache
from model.positions import Rotary
from model.restriction import allowed
from model.runner import Runner
from model.sampling import _adjust
from model.transformer import Transformer
from server.engine.block_pool import BlockPool
from server.engine.messages import Submit
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence

MIXTRAL = replace(LLAMA, family="mixtral", experts=Experts(count=4, per_token=2, hidden_dim=32, normalize=True))
YARN = replace(LLAMA, family="yarn", rope=Rope(10000.0, YarnScaling(4.0, 16)))
EVERYTHING = Sampling(
    repetition_penalty=1.1,
    presence_penalty=0.5,
    frequency_penalty=0.5,
    logit_bias={3: 1.0},
    min_tokens=9,
    ending_ids=(1, 2),
)
PREFILL = Chunk(list(range(20)), 0, 20, [2, 0], 20, EVERYTHING)
DECODE = Chunk(list(range(35)), 34, 35, [1, 3, 4], 30, EVERYTHING)


@pytest.fixture(autouse=True)
def fake_tensors() -> Iterator[None]:
    with fake_card():
        yield


def make_runner(kind: type[Kernels] = CardKernels, config: ModelConfig = LLAMA) -> Runner:
    kernels = kind(CUDA, torch.bfloat16)
    kernels.streams = MadeUp()
    return FakeRunner(Transformer(config, AllWeights(), kernels), cache(config))  # type: ignore[arg-type]


def transformer(config: ModelConfig, is_packed: bool = False) -> Transformer:
    return Transformer(config, AllWeights(is_packed), Kernels(CUDA, torch.bfloat16))  # type: ignore[arg-type]


def cache(config: ModelConfig) -> KVCache:
    return KVCache(config, 5, torch.bfloat16, CUDA)


@pytest.mark.parametrize("config", [LLAMA, GEMMA, GPT2, PAPER, YARN], ids=lambda config: config.family)
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_step_stays_on_the_device(config: ModelConfig, is_packed: bool) -> None:
    model = transformer(config, is_packed)
    hidden = model(pack(Batch([PREFILL, DECODE]), CUDA), cache(config))
    logits = model.logits(hidden)
    assert (hidden.device, hidden.dtype, hidden.shape) == (CUDA, torch.bfloat16, (21, 64))
    assert (logits.device, logits.dtype, logits.shape) == (CUDA, torch.float32, (21, 96))


def test_the_runner_stays_on_the_device_until_a_token_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def choose(logits_V: Tensor, best: int, chunk: Chunk, mask: bytes | None, kernels: Kernels) -> Sample:
        assert chunk.sampling is not None
        adjusted = _adjust(logits_V, chunk, chunk.sampling)
        if (allowed_V := allowed(chunk, mask, like=logits_V)) is not None:
            adjusted = torch.where(allowed_V, adjusted, -torch.inf)
        seen.append(weights(adjusted, chunk.sampling.temperature).cumsum(0))
        return Sample(0)

    monkeypatch.setattr("model.sampling.choose", choose)
    runner, drafting = make_runner(), replace(DECODE, drafts=(0,))  # which comes true, as every choice is 0
    runner.run(Batch([PREFILL, replace(PREFILL, sampling=None), drafting]))
    assert [(found.device, found.shape) for found in seen] == [(CUDA, (96,))] * 3


def whole_steps(runner: Runner) -> int:
    """Scheduled, packed, computed, chosen and applied, a step ahead wherever that can be; how many there were."""
    scheduler = Scheduler(Limits(4, 24), BlockPool(5))
    for id, length in enumerate((30, 3)):
        sampling = Sampling(temperature=0.7 * id, seed=id)
        scheduler.add(Sequence.of(Submit(id, list(range(length)), 5, [], sampling)))
    said: list[tuple[int, list[int]]] = []
    steps, batch, ahead = 0, scheduler.schedule(), None
    with streams_of(runner).watched():
        while batch:
            if batch is not ahead:
                runner.dispatch(batch)
            ahead = scheduler.ahead()
            if ahead:
                runner.dispatch(ahead)
            said += [(delta.id, delta.tokens) for delta in scheduler.apply(runner.collect())]
            steps, batch = steps + 1, ahead or scheduler.schedule()
    assert sorted(said) == [(0, [0])] * 5 + [(1, [0])] * 5
    return steps


def streams_of(runner: Runner) -> MadeUp:
    streams = runner.transformer.kernels.streams
    assert isinstance(streams, MadeUp)
    return streams


@pytest.mark.parametrize("kind", [CardKernels, TritonKernels])
def test_whole_steps_stay_on_the_device_and_the_host_waits_once_for_each(kind: type[Kernels]) -> None:
    runner = make_runner(kind)
    assert whole_steps(runner) == streams_of(runner).waits


@pytest.mark.parametrize("config", [LLAMA, GEMMA, GPT2, PAPER, YARN, MIXTRAL], ids=lambda config: config.family)
def test_whole_steps_are_filled_up_and_replayed(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as a graph is captured that holds them; the first one has more rows than any."""
    monkeypatch.setattr("torch.equal", lambda one, other: (one.shape, one.device) == (other.shape, other.device))
    runner = make_runner(TritonKernels, config)
    runner.record(16)
    streams, steps = streams_of(runner), whole_steps(runner)
    assert streams.replays == 0
    for captures in range(1, 6):
        assert runner.record_more()
        before, waits = streams.replays, streams.waits
        assert whole_steps(runner) == steps == streams.waits - waits
        assert (streams.captures, streams.replays - before) == (captures, steps - 1)
    assert not runner.record_more()


def test_an_upload_that_nobody_has_pinned_would_show() -> None:
    runner = make_runner(TritonKernels)
    rotary = next(iter(runner.transformer.rotaries.values()))
    frequencies = rotary.frequencies.to("cpu")
    rotary.__class__ = type("Forgetful", (Rotary,), {"frequencies": property(lambda self: frequencies.to(CUDA))})
    with pytest.raises(HostSync, match="from one of"):
        whole_steps(runner)


def test_experts_stay_on_the_device() -> None:
    experts = Experts(count=4, per_token=2, hidden_dim=32, normalize=True)
    mixture = MixtureOfExperts(AllWeights(), experts, LLAMA, Kernels(CUDA, torch.bfloat16))  # type: ignore[arg-type]
    x_TD = torch.empty(21, 64, device=CUDA, dtype=torch.bfloat16)
    chosen, share = mixture._route(x_TD)
    assert (chosen.device, share.device, share.dtype) == (CUDA, CUDA, torch.bfloat16)
    for projections in (mixture.up, mixture.down):
        assert projections.biases is not None
        tensors = [projections.biases, *(weight for stack in projections.stacks for weight in stack)]
        assert {tensor.device for tensor in tensors} == {CUDA}


def norm_left_behind(model: Transformer, inputs: Inputs, cache: KVCache) -> Inputs:
    assert model.norm is not None
    model.norm.weight = model.norm.weight.to("cpu")
    return inputs


def bias_left_behind(model: Transformer, inputs: Inputs, cache: KVCache) -> Inputs:
    projection = model.layers[1].attention.out
    assert projection.bias is not None
    projection.bias = projection.bias.to("cpu")
    return inputs


def cache_left_behind(model: Transformer, inputs: Inputs, cache: KVCache) -> Inputs:
    cache.layers[1] = replace(cache.layers[1], values=cache.layers[1].values.to("cpu"))
    return inputs


def table_left_behind(model: Transformer, inputs: Inputs, cache: KVCache) -> Inputs:
    spans = [replace(span, blocks=span.blocks.to("cpu")) for span in inputs.spans]
    return replace(inputs, spans=spans)


def left_behind(name: str) -> Callable[[Transformer, Inputs, KVCache], Inputs]:
    return lambda model, inputs, cache: replace(inputs, **{name: getattr(inputs, name).to("cpu")})


@pytest.mark.parametrize(
    "plant",
    [
        left_behind("ids"),
        left_behind("positions"),
        left_behind("slots"),
        table_left_behind,
        norm_left_behind,
        bias_left_behind,
        cache_left_behind,
    ],
    ids=["ids", "positions", "slots", "block table", "norm", "bias", "cache"],
)
def test_a_tensor_left_on_the_cpu_fails(plant: Callable[[Transformer, Inputs, KVCache], Inputs]) -> None:
    model, held = transformer(LLAMA), cache(LLAMA)
    inputs = plant(model, pack(Batch([PREFILL, DECODE]), CUDA), held)
    with pytest.raises(RuntimeError, match=r"found (two different|at least two) devices"):
        model(inputs, held)
