"""The model on the device as a server would load it, and batches for it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.gpu_check.section import Options
from model.batch import GREEDY, Batch, Chunk, Sampling
from model.kv_cache import BLOCK_SIZE
from model.loading import OpenModel, Request, load, open_model
from model.memory import MemoryPlan
from model.runner import Runner

STEP_TOKENS = 512
KINDS = 251  # of tokens in the batches
PLAIN = Sampling(temperature=GREEDY)
TOLD = Sampling(temperature=GREEDY, top_logprobs=20)


def opened(options: Options, dtype: Literal["auto", "bfloat16"] = "auto", exact: bool = True) -> OpenModel:
    request = Request(
        model=options.model,
        device=options.device,
        dtype=dtype,
        activations="int16",
        exact=exact,
        kv_dtype="auto",
        context_length=None,
        kv_memory=None,
        max_sequences=options.sequences,
        step_tokens=STEP_TOKENS,
        threads=None,
    )
    return open_model(request, lambda stage, done, total: None)


def loaded(model: OpenModel, plan: MemoryPlan) -> Runner:
    """Its cache is full of random numbers: contexts that nobody has computed."""
    runner = load(model, plan, lambda stage, done, total: None)
    for layer in runner.cache.layers:
        for tensor in (layer.keys, layer.values):
            _randomize(tensor)
        if layer.scales is not None:
            layer.scales.fill_(1 / torch.iinfo(layer.keys.dtype).max)
    return runner


def record_all(runner: Runner) -> int:
    """Of how many sizes of steps a server would have recorded one after the other while nobody waits."""
    count = 0
    while runner.record_more():
        count += 1
    return count


def _randomize(tensor: Tensor) -> None:
    if tensor.is_floating_point():
        tensor.normal_()
    else:
        most = torch.iinfo(tensor.dtype).max
        tensor.random_(-most, most + 1)


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's share of a step: so many rows, that end where its context has this length."""

    rows: int
    context: int


def batch(runner: Runner, parts: list[Part], sampling: Sampling = PLAIN) -> Batch:
    """Each part's blocks are its own for as long as there are any; then they are shared, which costs the same."""
    kinds, num_blocks = min(KINDS, runner.transformer.config.vocab_size), runner.cache.num_blocks
    tokens = {part.context: [(7 * place + part.context) % kinds for place in range(part.context)] for part in parts}
    chunks, first = [], 0
    for part in parts:
        count = -(-part.context // BLOCK_SIZE)
        blocks = [(first + place) % num_blocks for place in range(count)]
        start, known = part.context - part.rows, tokens[part.context]
        chunks.append(Chunk(known, start, part.context, blocks, part.context, sampling))
        first += count
    return Batch(chunks)
