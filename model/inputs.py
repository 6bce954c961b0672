"""A batch as tensors: the rows of all chunks packed into one dimension, and where each chunk's context lies."""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from model.batch import Batch, Chunk
from model.kernels.drawing import Upload
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
    waiting_rows: Tensor  # int64: those whose ids are not known, and 0 as yet
    awaited: Tensor  # int64, as many: which choices of the step before are these ids
    adapted: dict[str, slice]  # digest of an adapter -> the rows of all chunks that have it


@dataclass(frozen=True, slots=True)
class Padding:
    """Rows that fill a step up: each is a token of its own, the first of a context that lies in a block for nobody."""

    rows: int
    block: int


def pack(batch: Batch, device: torch.device, upload: Upload = Tensor.to, padding: Padding | None = None) -> Inputs:
    """Lays the chunks one after the other: those without an adapter first, then those of each.

    Everything crosses to the device as one tensor. Spans of padding follow those of the chunks.
    """
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    first_rows: dict[int, int] = {}  # by the chunk's place in the batch
    waiting: list[int] = []
    awaited: list[int] = []
    adapted: dict[str, slice] = {}
    for place, chunk in sorted(enumerate(batch.chunks), key=lambda item: item[1].adapter or ""):
        first_rows[place] = first_row = len(ids)
        ids += chunk.tokens[chunk.start : chunk.stop] if chunk.awaits is None else [0]
        ids += chunk.drafts
        positions += range(chunk.start, chunk.end)
        slots += (chunk.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(chunk.start, chunk.end))
        if chunk.awaits is not None:
            waiting.append(first_row)
            awaited.append(chunk.awaits)
        if chunk.adapter is not None:
            first_of_all = adapted.get(chunk.adapter, slice(first_row, None)).start
            adapted[chunk.adapter] = slice(first_of_all, len(ids))
    if padding is not None:
        ids += [0] * padding.rows
        positions += [0] * padding.rows
        slots += [padding.block * BLOCK_SIZE] * padding.rows
    sampled = [row for place, chunk in enumerate(batch.chunks) for row in _sampled_rows(chunk, first_rows[place])]
    tables = [chunk.blocks[: -(-chunk.end // BLOCK_SIZE)] for chunk in batch.chunks]
    tables += [[padding.block]] * padding.rows if padding else []
    columns = [ids, positions, slots, sampled, waiting, awaited, *tables]
    together = torch.tensor(list(chain.from_iterable(columns)), dtype=torch.int64)
    parts = upload(together, device).split_with_sizes([len(column) for column in columns])
    ids_T, positions_T, slots_T, sampled_rows, waiting_rows, awaited_places = parts[:6]
    starts = [(first_rows[place], len(chunk), chunk.start) for place, chunk in enumerate(batch.chunks)]
    starts += [(row, 1, 0) for row in range(sum(map(len, batch.chunks)), len(ids))]
    spans = [
        Span(first_row, first_row + rows, start, table)
        for (first_row, rows, start), table in zip(starts, parts[6:], strict=True)
    ]
    return Inputs(ids_T, positions_T, slots_T, spans, sampled_rows, waiting_rows, awaited_places, adapted)


def _sampled_rows(chunk: Chunk, first_row: int) -> range:
    """The rows after which the chunk chooses."""
    if chunk.sampling is None:
        return range(0)
    last_row = first_row + len(chunk)
    return range(last_row - 1 - len(chunk.drafts), last_row)
