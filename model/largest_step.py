"""The steps that take the most memory of all that may come, so that it can be measured."""

from collections.abc import Iterator
from dataclasses import replace

from model.batch import Batch, Chunk, Reading, Sampling
from model.kv_cache import BLOCK_SIZE
from model.memory import StepLimits

_DRAWN = Sampling(top_p=0.9, top_k=50)
_TOLD = Sampling(top_p=0.9, repetition_penalty=1.1, frequency_penalty=0.1, logit_bias={0: 1.0}, top_logprobs=20)


def largest_steps(limits: StepLimits, block: int) -> Iterator[Batch]:
    """One for each way to read a prompt: as many rows and choices as there may be, at the ends of the longest contexts.

    All of these lie in one block: which positions it holds makes no difference to memory.
    """
    longest = limits.context_length
    tokens, table = [0] * longest, [block] * -(-longest // BLOCK_SIZE)
    sequences = min(limits.max_sequences, limits.step_tokens)
    left = limits.step_tokens - sequences
    chunks: list[Chunk] = []
    for place in range(sequences):
        more = min(left, longest - 1)
        left -= more
        sampling = _TOLD if place % 2 else _DRAWN
        chunks.append(Chunk(tokens, longest - 1 - more, longest, table, longest, sampling))
    first, *others = chunks
    for reading in (Reading(start=first.start), Reading(start=first.start, top_logprobs=20)):
        yield Batch([replace(first, reading=reading), *others])
