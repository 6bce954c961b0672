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
    adapted: dict[str, slice]  # digest of an adapter -> the rows of all chunks that have it


def pack(batch: Batch, device: torch.device) -> Inputs:
    """Lays the chunks one after the other: those without an adapter first, then those of each."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    placed: dict[int, Span] = {}  # by the chunk's place in the batch
    adapted: dict[str, slice] = {}
    for place, chunk in sorted(enumerate(batch.chunks), key=lambda item: item[1].adapter or ""):
        first_row = len(ids)
        ids += chunk.tokens[chunk.start : chunk.stop]
        ids += chunk.drafts
        positions += range(chunk.start, chunk.end)
        slots += (chunk.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(chunk.start, chunk.end))
        placed[place] = Span(first_row, len(ids), chunk.start, torch.tensor(chunk.blocks, device=device))
        if chunk.adapter is not None:
            first_of_all = adapted.get(chunk.adapter, slice(first_row, None)).start
            adapted[chunk.adapter] = slice(first_of_all, len(ids))
    spans = [placed[place] for place in range(len(batch.chunks))]
    sampled_rows: list[int] = []
    for chunk, span in zip(batch.chunks, spans, strict=True):
        if chunk.sampling is not None:
            sampled_rows += range(span.last_row - 1 - len(chunk.drafts), span.last_row)
    ids_T, positions_T, slots_T, rows_S = (
        torch.tensor(column, dtype=torch.int64, device=device) for column in (ids, positions, slots, sampled_rows)
    )
    return Inputs(ids_T, positions_T, slots_T, spans, rows_S, adapted)
