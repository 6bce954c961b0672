"""A batch as tensors: the rows of all chunks packed into one dimension, and where each chunk's context lies."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.batch import Batch
from model.kernels.reference import Span
from model.kv_cache import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class Inputs:
    """One step's input. T rows."""

    ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    slots: Tensor  # int64 [T], block * BLOCK_SIZE + offset
    spans: list[Span]  # one per chunk, in order
    sampled_rows: Tensor  # int64: of each chunk that chooses, the row of its last known token and those of its drafts


def pack(batch: Batch, device: torch.device) -> Inputs:
    """Lays the chunks one after the other."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    spans: list[Span] = []
    sampled_rows: list[int] = []
    for chunk in batch.chunks:
        first_row = len(ids)
        ids += chunk.tokens[chunk.start : chunk.stop]
        ids += chunk.drafts
        positions += range(chunk.start, chunk.end)
        slots += (chunk.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(chunk.start, chunk.end))
        spans.append(Span(first_row, len(ids), chunk.start, torch.tensor(chunk.blocks, device=device)))
        if chunk.sampling is not None:
            sampled_rows += range(len(ids) - 1 - len(chunk.drafts), len(ids))
    ids_T, positions_T, slots_T, rows_S = (
        torch.tensor(column, dtype=torch.int64, device=device) for column in (ids, positions, slots, sampled_rows)
    )
    return Inputs(ids_T, positions_T, slots_T, spans, rows_S)
