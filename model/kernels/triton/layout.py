"""Where the chunks of a step lie, as the attention kernels read it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.kernels.drawing import Upload
from model.kernels.reference import Span
from model.kernels.triton.attention import SPLIT, TILE_FIELDS

FIELDS = TILE_FIELDS.value


@dataclass(frozen=True, slots=True)
class Layout:
    """On the device, and the same for all layers of a step."""

    spans: list[Span]
    tiles: Tensor  # int64 [tiles, FIELDS]
    tables: Tensor  # int64, those of all chunks, one after the other
    positions: Tensor  # int64 [T]
    splits: int  # of the longest context, at least


def lay_out(spans: list[Span], tile_rows: int, device: torch.device, upload: Upload) -> Layout:
    numbers, num_tiles = tiles_and_positions(spans, tile_rows)
    tiles, positions = upload(numbers, device).tensor_split([num_tiles * FIELDS])
    return Layout(spans, tiles.view(num_tiles, FIELDS), tables_of(spans), positions, splits_of(longest(spans)))


def tiles_and_positions(spans: list[Span], tile_rows: int, num_tiles: int = 0) -> tuple[Tensor, int]:
    """One after the other, on the host; and how many tiles: at least as many as asked for, those without rows last."""
    tiles: list[int] = []
    table = 0
    for span in spans:
        for first in range(span.first_row, span.last_row, tile_rows):
            count = min(tile_rows, span.last_row - first)
            tiles += (first, count, span.start + first - span.first_row, table)
        table += len(span.blocks)
    tiles += [0] * (num_tiles * FIELDS - len(tiles))
    in_order = sorted(spans, key=lambda span: span.first_row)
    positions = [position for span in in_order for position in range(span.start, span.stop)]
    return torch.tensor(tiles + positions, dtype=torch.int64), len(tiles) // FIELDS


def tables_of(spans: list[Span]) -> Tensor:
    return torch.cat([span.blocks for span in spans])


def longest(spans: list[Span]) -> int:
    """Positions of the longest context."""
    return max(span.stop for span in spans)


def splits_of(context: int) -> int:
    return -(-context // SPLIT)
