"""How a model argument becomes a model that runs: find it, read its header, plan memory, load, warm up."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from model.checkpoints.checkpoint import open_checkpoint
from model.checkpoints.contents import Checkpoint, TokenizerCard
from model.checkpoints.digest import sample_digest
from model.checkpoints.errors import CheckpointError
from model.checkpoints.sources import locate
from model.config import ModelConfig
from model.families import Description, describe
from model.kernels import Kernels, available_cores, select
from model.kv_cache import KVCache
from model.memory import MemoryPlan, NotEnoughMemory, StepLimits, free_memory, plan, step_bytes
from model.parallel import ALONE, Ranks
from model.runner import Runner
from model.shares import Share, share
from model.transformer import Transformer
from model.weights import Weights

_DTYPES = {
    **{"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16},
    **{"int16": torch.int16, "int8": torch.int8, "float8": torch.float8_e4m3fn},
}

Report = Callable[[str, int, int], None]  # stage, bytes done, bytes in total or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to load and how large its steps may become."""

    model: str
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    activations: Literal["int16", "int8"]
    exact: bool = True
    graphs: bool = True
    kv_dtype: Literal["auto", "float32", "float16", "int16", "int8", "float8"]
    context_length: int | None
    kv_memory: float | None  # GiB
    max_sequences: int
    step_tokens: int
    threads: int | None


@dataclass(slots=True)
class _Progress:
    """Counts up to a total."""

    report: Report
    stage: str
    total: int
    done: int = 0

    def add(self, amount: int) -> None:
        self.done += amount
        self.report(self.stage, self.done, self.total)


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model of which the header is read: everything is known of it but its weights."""

    request: Request
    checkpoint: Checkpoint
    description: Description
    kernels: Kernels
    ranks: Ranks = ALONE

    @property
    def config(self) -> ModelConfig:
        return self.description.config

    @property
    def kernels_name(self) -> str:
        """Sums over ranks have other bits, so they have another name."""
        return self.kernels.name if self.ranks.size == 1 else f"{self.kernels.name}+tp{self.ranks.size}"

    @property
    def kv_dtype(self) -> torch.dtype:
        if self.request.kv_dtype == "auto":
            return self.kernels.kv_dtype
        return _DTYPES[self.request.kv_dtype]

    def tokenizer(self) -> TokenizerCard:
        return self.checkpoint.tokenizer()

    def digest(self) -> str:
        """Of a sample of the weights and of what is computed with them, the context's length included."""
        return hashlib.sha256(f"{self.config}{sample_digest(self.checkpoint)}".encode()).hexdigest()

    def plan(self) -> MemoryPlan:
        """What loading this rank's part would take, from what is free now. Raises NotEnoughMemory, or ValueError.

        All ranks have as many blocks as the one with the least room, and a block counts for what it takes of the one
        with the most heads. None begins to load before all have looked.
        """
        kernels, own, infos = self.kernels, self.share(), self.checkpoint.infos
        weights = sum(own.portion(info.name, kernels.prepared_bytes(info.shape, info.dtype)) for info in infos)
        takers = self.ranks.local_size if kernels.device.type == "cpu" else 1  # a card is one rank's
        free = free_memory(kernels.device) // takers
        return self._shared_out(own.config, weights, step_bytes(own.config, self.limits, kernels), free)

    def measured(self, planned: MemoryPlan, transformer: Transformer) -> MemoryPlan:
        """The plan by what the largest step is seen to take, beside weights that are loaded. Raises NotEnoughMemory."""
        kernels, config = self.kernels, transformer.config
        trial = Runner(transformer, KVCache(config, 0, self.kv_dtype, kernels.device, kernels.are_keys_in_rows))
        step = self.rehearsed(trial)
        kernels.streams.free_unused()
        return self._shared_out(config, planned.weights, step, planned.weights + free_memory(kernels.device))

    def rehearsed(self, runner: Runner) -> int:
        """Bytes that the device sets aside for the largest step, and keeps. Raises NotEnoughMemory."""
        limits = self.limits
        try:
            return runner.rehearse(limits)
        except torch.OutOfMemoryError as error:
            raise NotEnoughMemory(
                f"step-tokens {limits.step_tokens} with max-sequences {limits.max_sequences} and contexts of "
                f"{limits.context_length} tokens take more memory than is left"
            ) from error

    def _shared_out(self, config: ModelConfig, weights: int, step: int, free: int) -> MemoryPlan:
        kv_memory = self.request.kv_memory
        planned = plan(config, weights, step, free, self.limits, self.kernels.device, self.kv_dtype, kv_memory)
        largest_block = -self.ranks.least(-planned.block)
        return replace(planned, num_blocks=self.ranks.least(planned.num_blocks), block=largest_block)

    @property
    def limits(self) -> StepLimits:
        request = self.request
        return StepLimits(request.step_tokens, request.max_sequences, self.config.context_length, self.ranks.size)

    def share(self) -> Share:
        """The part that is this rank's. Raises ValueError where the model has none for it."""
        return share(self.description, self.checkpoint.infos, self.ranks)


def open_model(request: Request, report: Report, ranks: Ranks = ALONE) -> OpenModel:
    """Finds it and reads its header. Raises CheckpointError, or ValueError with one line for people."""
    path = locate(request.model, report)
    checkpoint = open_checkpoint(path)
    try:
        description = describe(checkpoint.kind, checkpoint.metadata, {info.name for info in checkpoint.infos})
    except ValueError as error:
        raise CheckpointError(checkpoint.path, str(error)) from error
    if request.context_length is not None:
        if request.context_length > description.config.context_length:
            longest = description.config.context_length
            raise ValueError(f"context-length {request.context_length} is beyond the model's own {longest} tokens")
        config = replace(description.config, context_length=request.context_length)
        description = replace(description, config=config)
    device = _device(request.device, ranks)
    threads = max(1, (request.threads or available_cores()) // ranks.local_size)
    kernels = select(device, _dtype(request.dtype, device), request.activations, threads, request.exact)
    return OpenModel(request, checkpoint, description, kernels, ranks)


def load(model: OpenModel, memory: MemoryPlan, report: Report) -> Runner:
    """Reads the weights, reserves the cache and runs the largest step once. Raises CheckpointError."""
    own = model.share()
    total = sum(own.portion(info.name, info.nbytes) for info in model.checkpoint.infos)
    progress = _Progress(report, "loading weights", total)
    names, tensors = model.description.names, dict(model.checkpoint.tensors())
    weights = Weights(tensors, names, on_take=progress.add, cuts=own.cuts)
    try:
        transformer = Transformer(own.config, weights, model.kernels, model.ranks)
        weights.finish(model.description.ignorable)
    except ValueError as error:
        raise CheckpointError(model.checkpoint.path, str(error)) from error
    kernels = model.kernels
    if kernels.streams.is_asynchronous:
        report("measuring the largest step", 0, 0)
        memory = model.measured(memory, transformer)
    cache = KVCache(own.config, memory.num_blocks, model.kv_dtype, kernels.device, kernels.are_keys_in_rows)
    runner = Runner(transformer, cache)
    runner.memory = memory
    report("warming up", 0, 0)
    step_tokens = min(model.request.step_tokens, model.config.context_length)
    if model.request.graphs:
        runner.record(step_tokens)
    runner.warm_up(step_tokens)
    if kernels.streams.is_asynchronous:
        model.rehearsed(runner)  # so that what it takes is there before the first request
    return runner


def _device(name: str, ranks: Ranks) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, and torch finds no CUDA device")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks.local_size > torch.cuda.device_count():
        raise ValueError(f"tensor-parallel: {ranks.local_size} ranks take a card each, and there are fewer")
    if ranks.size == 1:
        return torch.device("cuda")
    torch.cuda.set_device(ranks.local_rank)
    return torch.device("cuda", ranks.local_rank)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]
