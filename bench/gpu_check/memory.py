"""Whether the memory that a plan foretells is what the device then gives out, the worst step included."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.gpu_check.loading import STEP_TOKENS, Part, batch, loaded, opened
from bench.gpu_check.meters import Meter, meter_of
from bench.gpu_check.report import table
from bench.gpu_check.section import Failed, Options
from model.batch import Sampling
from model.kv_cache import BLOCK_SIZE
from model.loading import OpenModel
from model.memory import MemoryPlan, free_memory
from model.runner import Runner

MIB = 1024**2
EVERYTHING = Sampling(
    temperature=0.8, top_p=0.9, top_k=50, min_p=0.01, repetition_penalty=1.1, frequency_penalty=0.1, top_logprobs=20
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes beyond those before loading."""

    resting: int  # with the model loaded and the cache reserved, after a step
    peak: int  # in the worst step
    cache: int


def check(options: Options) -> Iterator[str]:
    model = opened(options)
    return findings(model, meter_of(model.kernels.device))


def findings(model: OpenModel, meter: Meter) -> Iterator[str]:
    """Raises Failed where the device gave out more than the plan allows."""
    sequences, before, free = model.request.max_sequences, meter.now(), free_memory(model.kernels.device)
    plan = model.plan()
    yield f"`headrace plan`, for {sequences} sequences:\n\n```\n{plan}\n```"
    runner = loaded(model, plan)
    if runner.memory is not None and runner.memory != plan:
        plan = runner.memory
        yield f"By what the largest step was seen to take:\n\n```\n{plan}\n```"
    resting = meter.now() - before
    meter.forget_peak()
    runner.run(batch(runner, worst_step(runner, sequences), EVERYTHING))
    measured = Measured(resting, meter.peak() - before, _cache_bytes(runner))
    yield table([["MiB", "planned", "measured"], *_rows(plan, measured)])
    gone = (free - free_memory(model.kernels.device)) / MIB
    yield f"{meter.meaning} {gone:,.0f} MiB less are free than before."
    if meter.is_exact and (excess := measured.peak - _sum(plan)) > 0:
        raise Failed(f"the worst step took {excess / MIB:,.0f} MiB more than was planned in all")


def worst_step(runner: Runner, sequences: int) -> list[Part]:
    """As many rows as a step may have, all of them at the end of the longest context, all sequences sampling."""
    length = min(runner.transformer.config.context_length, runner.cache.num_blocks * BLOCK_SIZE)
    decodes = min(sequences, STEP_TOKENS) - 1
    return [Part(min(STEP_TOKENS - decodes, length), length)] + [Part(1, length)] * decodes


def _rows(plan: MemoryPlan, measured: Measured) -> list[list[str]]:
    pairs = {
        "weights, and what else stays": (plan.weights, measured.resting - measured.cache),
        "KV cache": (plan.cache, measured.cache),
        "worst step": (plan.step, measured.peak - measured.resting),
        "peak": (_sum(plan), measured.peak),
    }
    return [[name, *(f"{size / MIB:,.1f}" for size in sizes)] for name, sizes in pairs.items()]


def _sum(plan: MemoryPlan) -> int:
    return plan.weights + plan.step + plan.cache


def _cache_bytes(runner: Runner) -> int:
    tensors = [(layer.keys, layer.values, layer.scales) for layer in runner.cache.layers]
    return sum(tensor.nbytes for layer in tensors for tensor in layer if isinstance(tensor, torch.Tensor))
