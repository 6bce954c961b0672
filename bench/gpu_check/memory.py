"""Whether the memory that a plan foretells is what the device then gives out, the worst step included."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.gpu_check.loading import STEP_TOKENS, Part, batch, loaded, opened, record_all
from bench.gpu_check.meters import Meter, meter_of
from bench.gpu_check.report import table
from bench.gpu_check.section import Failed, Options
from model.batch import Sampling
from model.kv_cache import BLOCK_SIZE
from model.loading import OpenModel
from model.memory import MemoryPlan, free_memory
from model.runner import Runner

MIB = 1024**2
HEAD = ["MiB", "planned before loading", "planned after a trial", "measured"]
EVERYTHING = Sampling(
    temperature=0.8, top_p=0.9, top_k=50, min_p=0.01, repetition_penalty=1.1, frequency_penalty=0.1, top_logprobs=20
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes beyond those before loading."""

    resting: int  # with the model loaded and the cache reserved
    peak: int  # in the worst step
    cache: int
    recorded: int  # by what is recorded while nobody waits


def check(options: Options) -> Iterator[str]:
    model = opened(options)
    return findings(model, meter_of(model.kernels.device))


def findings(model: OpenModel, meter: Meter) -> Iterator[str]:
    """Raises Failed where the device gave out more than the plan allows."""
    sequences, before, free = model.request.max_sequences, meter.now(), free_memory(model.kernels.device)
    plan = model.plan()
    yield f"`headrace plan`, for {sequences} sequences:\n\n```\n{plan}\n```"
    runner = loaded(model, plan)
    kept = runner.memory
    assert kept is not None, "it was loaded by one"
    measured = _measured(runner, meter, before, sequences)
    yield table([HEAD, *_rows(plan, kept, measured)])
    left = free_memory(model.kernels.device)
    yield f"{meter.meaning} Of {free / MIB:,.0f} MiB that were free before, {left / MIB:,.0f} are."
    if meter.is_exact and (excess := measured.peak - _sum(kept)) > 0:
        raise Failed(f"the worst step took {excess / MIB:,.0f} MiB more than was planned in all")


def _measured(runner: Runner, meter: Meter, before: int, sequences: int) -> Measured:
    resting = meter.now() - before
    meter.forget_peak()
    runner.run(batch(runner, worst_step(runner, sequences), EVERYTHING))
    peak, unrecorded = meter.peak() - before, meter.now()
    record_all(runner)
    return Measured(resting, peak, _cache_bytes(runner), meter.now() - unrecorded)


def worst_step(runner: Runner, sequences: int) -> list[Part]:
    """As many rows as a step may have, all of them at the end of the longest context, all sequences sampling."""
    length = min(runner.transformer.config.context_length, runner.cache.num_blocks * BLOCK_SIZE)
    decodes = min(sequences, STEP_TOKENS) - 1
    return [Part(min(STEP_TOKENS - decodes, length), length)] + [Part(1, length)] * decodes


def _rows(plan: MemoryPlan, kept: MemoryPlan, measured: Measured) -> list[list[str]]:
    """As HEAD says."""
    rows = {
        "weights, and what else stays": (plan.weights, kept.weights, measured.resting - measured.cache),
        "KV cache": (plan.cache, kept.cache, measured.cache),
        "worst step": (plan.step, kept.step, measured.peak - measured.resting),
        "all of these": (_sum(plan), _sum(kept), measured.peak),
        "graphs, of what is left": (plan.free - _sum(plan), kept.free - _sum(kept), measured.recorded),
    }
    return [[name, *(f"{size / MIB:,.1f}" for size in sizes)] for name, sizes in rows.items()]


def _sum(plan: MemoryPlan) -> int:
    return plan.weights + plan.step + plan.cache


def _cache_bytes(runner: Runner) -> int:
    tensors = [(layer.keys, layer.values, layer.scales) for layer in runner.cache.layers]
    return sum(tensor.nbytes for layer in tensors for tensor in layer if isinstance(tensor, torch.Tensor))
