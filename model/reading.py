"""What a prompt's own rows tell: the log probabilities of its tokens, or one vector for all of it.

Logits take V numbers a row, so they are computed a few rows at a time, and only what is told of them is kept. A row is
judged alone, and a vector is a sum of integers, which has no order: nothing here depends on how a prompt is chunked.
"""

import numpy as np
from torch import Tensor

from model.batch import Chunk, Finding, Logprobs, Reading
from model.sampling import logprobs_of
from model.transformer import Transformer

# Shapes: R rows that are read, D model width, V vocabulary

ROWS_AT_ONCE = 32

_UNIT = 2.0**30  # a hidden state is counted in parts of so many
_LARGEST = 2.0**13  # hidden state; 2**20 rows of these are summed without an overflow


def read(transformer: Transformer, hidden_RD: Tensor, chunk: Chunk) -> Finding | str:
    """What the rows `chunk.read_rows` tell, given their last hidden states; or the error in words."""
    assert chunk.reading is not None
    if chunk.reading.top_logprobs is None:
        return _vector(hidden_RD, chunk, chunk.reading)
    logprobs: list[Logprobs] = []
    ranks: list[int] = []
    followers = [chunk.tokens[row + 1] for row in chunk.read_rows]
    for first in range(0, len(followers), ROWS_AT_ONCE):
        logits = transformer.logits(hidden_RD[first : first + ROWS_AT_ONCE])
        if bool((transformer.kernels.argmax(logits) < 0).any()):
            return "the model computed logits that are not finite"
        for logits_V, token in zip(logits, followers[first : first + ROWS_AT_ONCE], strict=True):
            logprobs.append(logprobs_of(logits_V, token, chunk.reading.top_logprobs))
            ranks.append(int((logits_V > logits_V[token]).sum()) + 1)
    return Finding(rows=len(followers), logprobs=logprobs, ranks=ranks)


def _vector(hidden_RD: Tensor, chunk: Chunk, reading: Reading) -> Finding | str:
    wide_RD = hidden_RD.double()
    if not bool((wide_RD.abs() < _LARGEST).all()):  # neither are those that are no numbers
        return "the model computed hidden states that are not finite or too large"
    total_D = (wide_RD * _UNIT).round_().long().sum(0).numpy(force=True)
    if reading.total:
        total_D = total_D + np.frombuffer(reading.total, np.int64)
    rows = len(hidden_RD)
    if reading.after(rows, chunk.prompt_length) is not None:
        return Finding(rows=rows, total=total_D.tobytes())
    return Finding(rows=rows, vector=_unit_length(total_D[: reading.dimensions].astype(np.float64)))


def _unit_length(values_D: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> bytes:
    """The mean of some vectors and their sum have one direction, and that is all that is left."""
    length = float(np.sqrt(np.square(values_D).sum()))
    return (values_D / (length or 1.0)).astype("<f4").tobytes()
