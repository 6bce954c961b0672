"""The forward pass as graphs: a step of few rows is done by a card sooner than a host has told it what to do.

A graph does again what was done while it was captured, on the same tensors. So there is one for each of some numbers of
rows, to which a step is filled up, and everything that differs from step to step lies in memory that all of them share.
Filled up, a row has the bits it has without: no kernel's sums depend on the number of rows, nor on that of splits.
"""

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.kernels.reference import Example, Forward, Span
from model.kernels.streams import Streams
from model.kernels.triton.attention import SPLIT
from model.kernels.triton.layout import FIELDS, Layout, longest, splits_of, tables_of, tiles_and_positions

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192)  # fewer than from where packed weights are unpacked first
SPLITS = (1, 8)  # programs without work take time, too; longer contexts, whose attention takes long anyway, are eager
_SMALLEST_BLOCK = 16  # positions


class Framed(Protocol):
    """The kernels, as far as graphs know them."""

    streams: Streams
    device: torch.device
    frame: "Frame | None"  # where they put a step's layout, if somewhere in particular


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """What a graph can take."""

    rows: int
    splits: int


@dataclass(frozen=True, slots=True)
class Graph:
    """One that was captured."""

    size: Size
    run: Callable[[], None]
    output: Tensor


class Frame:
    """Where the layouts of all steps lie that are replayed."""

    def __init__(self, largest: Size, kernels: Framed) -> None:
        self.size = largest  # of what is captured or replayed now
        self._streams = kernels.streams
        tables = largest.rows * largest.splits * (SPLIT // _SMALLEST_BLOCK)
        self._numbers, self._tables = (
            torch.zeros(count, dtype=torch.int64, device=kernels.device)
            for count in ((FIELDS + 1) * largest.rows, tables)
        )
        self._spans: list[Span] = []  # those that lie there
        self._tile_rows = 0

    def layout(self, spans: list[Span], tile_rows: int) -> Layout:
        """Where it lies; it is put there the first time that it is asked for."""
        if self._spans is not spans:
            self._tile_rows = tile_rows  # the same for all layers of a model
            self.fill(spans)
        rows = self.size.rows
        tiles, positions = self._numbers[: (FIELDS + 1) * rows].tensor_split([FIELDS * rows])
        return Layout(spans, tiles.view(rows, FIELDS), self._tables, positions, self.size.splits)

    def fill(self, spans: list[Span]) -> None:
        """Puts it there, with as many tiles as rows: those without rows compute nothing."""
        numbers, _ = tiles_and_positions(spans, self._tile_rows, self.size.rows)
        tables = tables_of(spans)
        self._numbers[: len(numbers)].copy_(self._streams.upload(numbers, self._numbers.device))
        self._tables[: len(tables)].copy_(tables)
        self._spans = spans


class Graphs:
    """The forward pass captured for some sizes of steps, one at a time and the largest first."""

    def __init__(
        self, kernels: Framed, forward: Forward, example: Example, most_rows: int, context_length: int
    ) -> None:
        """Reserves what all of them share, but for what the forward pass itself allocates."""
        self._kernels, self._forward, self._example = kernels, forward, example
        splits = sorted({min(count, splits_of(context_length)) for count in SPLITS})
        self._left = [Size(rows, count) for rows in ROWS if rows <= most_rows for count in splits]
        self._graphs: list[Graph] = []
        inputs, _ = example(self._left[-1].rows)
        self._inputs = tuple(torch.empty_like(tensor) for tensor in inputs)
        self._frame = Frame(self._left[-1], kernels)

    def padded(self, rows: int, context: int) -> int | None:
        graph = self._fitting(rows, context)
        return None if graph is None else graph.size.rows

    def replay(self, inputs: tuple[Tensor, ...], spans: list[Span]) -> Tensor:
        graph = self._fitting(len(inputs[0]), longest(spans))
        assert graph is not None, "nobody has captured it"
        for place, given in zip(self._inputs, inputs, strict=True):
            place[: len(given)].copy_(given)
        self._frame.size = graph.size
        self._frame.fill(spans)
        graph.run()
        return graph.output

    def extend(self) -> bool:
        """A graph is used only if it repeats, bit for bit, what is computed without it. What fails once is left."""
        if not self._left:
            return False
        try:
            graph = self._captured(self._left.pop())
        except RuntimeError:  # torch's for whatever a device refuses, memory among it
            traceback.print_exc()
            graph = None
        if graph is None:
            print("headrace: a graph could not be captured; steps of its size and below run without", file=sys.stderr)
            self._left.clear()
            return False
        self._graphs.append(graph)
        return True

    def _captured(self, size: Size) -> Graph | None:
        inputs, spans = self._example(size.rows)
        places = tuple(place[: size.rows].copy_(given) for place, given in zip(self._inputs, inputs, strict=True))
        outputs: list[Tensor] = []
        self._frame.size, self._kernels.frame = size, self._frame
        try:
            expected = self._forward(places, spans)  # a kernel's first launch loads it, which cannot be captured
            run = self._kernels.streams.capture(lambda: outputs.append(self._forward(places, spans)))
        finally:
            self._kernels.frame = None
        run()
        return Graph(size, run, outputs[0]) if torch.equal(outputs[0], expected) else None

    def _fitting(self, rows: int, context: int) -> Graph | None:
        """The smallest that holds so many rows and a context so long."""
        needed = splits_of(context)
        fitting = (graph for graph in self._graphs if graph.size.rows >= rows and graph.size.splits >= needed)
        return min(fitting, key=lambda graph: graph.size, default=None)
