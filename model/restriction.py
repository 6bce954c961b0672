"""Which tokens may be chosen at all: what a grammar, a list or a ban leaves of the vocabulary."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from model.batch import Chunk, Sampling

# Shapes: V vocabulary


def allowed(chunk: Chunk, mask: bytes | None, *, like: Tensor) -> Tensor | None:
    """bool [V], where `like` is the row of logits; None where every token may be chosen.

    Nothing lifts what another forbids, but for one thing: where a mask leaves only tokens that would end the output,
    they may end it, however short it is.
    """
    assert chunk.sampling is not None
    sampling = chunk.sampling
    late = _undesired(sampling, chunk.stop - chunk.prompt_length)
    banned = _completing(sampling.bad_words, chunk.output) if sampling.bad_words else []
    if mask is None and not (sampling.allowed_token_ids or late or banned):
        return None
    allowed_V = torch.ones_like(like, dtype=torch.bool) if mask is None else _unpacked(mask, like)
    if sampling.allowed_token_ids:
        allowed_V = allowed_V & _listed(sampling.allowed_token_ids, len(like)).to(like.device)
    if banned:
        allowed_V[banned] = False
    if late:
        others_V = allowed_V.clone()
        others_V[late] = False
        if mask is None or bool(others_V.any()):
            return others_V
    return allowed_V


def _undesired(sampling: Sampling, output_length: int) -> list[int]:
    """Tokens that would end the output, where it should go on."""
    is_too_short = output_length < sampling.min_tokens
    return [*sampling.last_resort_ids, *(sampling.ending_ids if is_too_short else ())]


def _completing(words: tuple[tuple[int, ...], ...], output: list[int]) -> list[int]:
    """The last tokens of words that the output ends with but for those."""
    return [last for *head, last in words if not head or output[-len(head) :] == head]


def _unpacked(mask: bytes, like: Tensor) -> Tensor:
    """A mask may have bits for more tokens than there are rows; those that it does not have are not set."""
    padded = mask.ljust(-(-len(like) // 8), b"\0")
    bits = np.unpackbits(np.frombuffer(padded, np.uint8), count=len(like), bitorder="little")
    return torch.from_numpy(bits).to(like.device).bool()


@lru_cache(64)
def _listed(ids: tuple[int, ...], size: int) -> Tensor:
    listed_V = torch.zeros(size, dtype=torch.bool)
    listed_V[list(ids)] = True
    return listed_V
