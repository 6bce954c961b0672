"""A whole step runs with CUDA tensors in bf16 on a machine without a GPU, and fails where devices are mixed.

Fake tensors have shapes, types and devices but no values, and fail on a host that asks for one: so it shows where the
host waits for the device. What a card says of its choices is made up. How those that are not plain are chosen, and
which experts, is walked up to the first value.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_configs import GEMMA, GPT2, LLAMA, PAPER
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from model.batch import Batch, Chunk, Sample, Sampling
from model.config import Experts, ModelConfig, Rope, YarnScaling
from model.experts import MixtureOfExperts
from model.inputs import Inputs, pack
from model.kernels import Kernels
from model.kernels.drawing import Draws, weights
from model.kernels.streams import Streams
from model.kv_cache import KVCache
from model.quantization import Format, PackedTensor
from model.restriction import allowed
from model.runner import Runner
from model.sampling import _adjust
from model.transformer import Transformer
from server.engine.block_pool import BlockPool
from server.engine.messages import Submit
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence

CUDA = torch.device("cuda", 0)
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


@dataclass(frozen=True, slots=True)
class AllWeights:
    """A checkpoint on the CPU that holds whatever is asked for: biases, query norms and rope divisors too."""

    is_packed: bool = False
    prefix: str = ""

    def below(self, name: str) -> "AllWeights":
        return self

    def __contains__(self, name: str) -> bool:
        return True

    def matrix(self, name: str, shape: tuple[int, int]) -> Tensor | PackedTensor:
        if not self.is_packed:
            return torch.empty(shape)
        data = torch.empty(shape[0], Format.Q8_0.row_bytes(shape[1]), dtype=torch.uint8)
        return PackedTensor(Format.Q8_0, shape, data)

    def vector(self, name: str, size: int) -> Tensor:
        return torch.empty(size)


class WithoutDriver(TorchFunctionMode):
    """Some of Tensor's methods ask for the device's driver, which torch for the CPU lacks: a fake CPU does these."""

    methods = (Tensor.__getitem__, Tensor.__setitem__, Tensor.contiguous)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.methods:
            return func(*args, **(kwargs or {}))
        devices = {leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim()}
        if len(devices) > 1:
            raise RuntimeError(f"{func.__name__} found two different devices {devices}")
        result = func(*tree_map_only(Tensor, lambda tensor: tensor.to("cpu"), args))
        return None if result is None else result.to(args[0].device)


@pytest.fixture(autouse=True)
def fake_tensors() -> Iterator[None]:
    with FakeTensorMode(), WithoutDriver():
        yield


@dataclass
class MadeUp(Streams):
    """A card's, but for what it says of its tensors."""

    is_asynchronous = True
    waits: int = 0

    def download(self, tensor: Tensor) -> "MadeUpChoices":
        assert (tensor.device, tensor.dtype) == (CUDA, torch.int64)
        return MadeUpChoices(self, len(tensor))


@dataclass(frozen=True)
class MadeUpChoices:
    streams: MadeUp
    count: int

    def wait(self) -> Any:
        self.streams.waits += 1
        return SimpleNamespace(tolist=lambda: [0] * self.count)


class CardKernels(Kernels):
    """They draw on the device, which the reference does not."""

    def draw(self, logits_SV: Tensor, draws: Draws, allowed_SV: Tensor | None = None) -> Tensor:
        assert {logits_SV.device, draws.seed.device, draws.temperature.device} == {CUDA}
        return logits_SV.argmax(-1)


class FakeRunner(Runner):
    """In inference mode, torch.tensor would make no fake."""

    _begin = inspect.unwrap(Runner._begin)
    _finish = inspect.unwrap(Runner._finish)


def make_runner() -> Runner:
    kernels = CardKernels(CUDA, torch.bfloat16)
    kernels.streams = MadeUp()
    return FakeRunner(Transformer(LLAMA, AllWeights(), kernels), cache(LLAMA))  # type: ignore[arg-type]


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


def test_whole_steps_stay_on_the_device_and_the_host_waits_once_for_each() -> None:
    """Scheduled, packed, computed, chosen and applied, a step ahead wherever that can be."""
    runner, scheduler = make_runner(), Scheduler(Limits(4, 24), BlockPool(5))
    for id, length in enumerate((30, 3)):
        sampling = Sampling(temperature=0.7 * id, seed=id)
        scheduler.add(Sequence.of(Submit(id, list(range(length)), 5, [], sampling)))
    said: list[tuple[int, list[int]]] = []
    steps, batch, ahead = 0, scheduler.schedule(), None
    while batch:
        if batch is not ahead:
            runner.dispatch(batch)
        ahead = scheduler.ahead()
        if ahead:
            runner.dispatch(ahead)
        said += [(delta.id, delta.tokens) for delta in scheduler.apply(runner.collect())]
        steps, batch = steps + 1, ahead or scheduler.schedule()
    assert sorted(said) == [(0, [0])] * 5 + [(1, [0])] * 5
    streams = runner.transformer.kernels.streams
    assert isinstance(streams, MadeUp)
    assert streams.waits == steps


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
