"""How a step that takes too much memory at once is computed in two."""

from dataclasses import replace

from model.batch import Batch, Chunk, StepResult


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Two batches of about half the rows, to be computed in this order; the second has whatever chooses last.

    That is exact, since a chunk's result depends on no other and not on where it is cut.
    """
    left, after = sum(map(len, batch.chunks)) // 2, [*batch.chunks]
    before: list[Chunk] = []
    while left >= len(after[0]):
        before.append(after.pop(0))
        left -= len(before[-1])
    chunk = after[0]
    if chunk.reading is None and 0 < left < chunk.stop - chunk.start:
        before, after = [*before, _first(chunk, left)], [replace(chunk, start=chunk.start + left), *after[1:]]
    return Batch(before), Batch(after)


def joined(first: StepResult, second: StepResult, num_chunks: int) -> StepResult:
    """The result of a batch of so many chunks from those of its halves."""
    before = num_chunks - len(second.samples)  # a chunk that was cut chooses in the second
    findings = first.findings | {before + place: finding for place, finding in second.findings.items()}
    return StepResult([*first.samples[:before], *second.samples], findings)


def _first(chunk: Chunk, rows: int) -> Chunk:
    return replace(chunk, stop=chunk.start + rows, sampling=None, drafts=(), masks=None)
