"""A model that knows of a sequence only what stands in its blocks, and what such a model says and reads."""

from dataclasses import replace
from itertools import chain
from random import Random

from model.batch import Batch, Chunk, Finding, Logprobs, Reading, Sample, Sampling, StepResult
from server.engine.messages import Submit

BLOCK_SIZE = 4  # small, so that block boundaries are everywhere
VOCABULARY = 4  # few words, so that equal blocks often follow upon unequal ones
NAN = 0  # what a failed row leaves in the cache: nothing that may ever be read
REJECTED = 1  # what is left of a draft that did not come true, and of rows to be computed once more
BEYOND = 4  # drafts may guess so many tokens after the last


class Violation(Exception):
    """Something that must never happen did."""


def require(condition: bool, violation: str) -> None:
    if not condition:
        raise Violation(violation)


def cell(context: list[int], token: int) -> int:
    """What the cache keeps of a token: like real keys and values, it depends on all that stands before it."""
    return hash((token, len(context), tuple(context)))


def choose(context: list[int], sampling: Sampling) -> int:
    return hash((sampling.seed, tuple(context))) % VOCABULARY


def foresee(order: Submit) -> list[int]:
    """What the model would say, ends aside, computed without blocks, batches or a scheduler."""
    context: list[int] = []
    for token in order.prompt:
        context.append(cell(context, token))
    output: list[int] = []
    while len(output) < order.max_tokens + BEYOND:
        output.append(choose(context, order.sampling))
        context.append(cell(context, output[-1]))
    return output


def golden(order: Submit, foreseen: list[int]) -> tuple[list[int], str]:
    """The output and how it ends."""
    output = foreseen[: order.max_tokens]
    ends = [length for length, token in enumerate(output, 1) if token in order.ending_ids]
    return (output[: ends[0]], "stop") if ends else (output, "length")


def read(reading: Reading, contents: list[int], tokens: list[int]) -> Finding:
    """What the next rows tell, given what the cache keeps of them and the tokens after them."""
    if reading.top_logprobs is not None:
        ranks = [hash(row) for row in zip(contents, tokens, strict=True)]
        return Finding(rows=len(contents), logprobs=[Logprobs(0.0, [])] * len(contents), ranks=ranks)
    total = int.from_bytes(reading.total) + sum(map(abs, contents))
    return Finding(rows=len(contents), total=total.to_bytes(16))


def tell(order: Submit) -> list[int]:
    """All that a prompt tells, read at once."""
    reading = order.reading and order.reading.after(0, len(order.prompt))
    if reading is None:
        return []
    contents: list[int] = []
    for token in order.prompt:
        contents.append(cell(contents, token))
    rows = slice(reading.start, reading.stop(len(order.prompt)))
    return told(read(reading, contents[rows], order.prompt[reading.start + 1 :]))


def told(finding: Finding) -> list[int]:
    return finding.ranks or [int.from_bytes(finding.total or finding.vector)]


class FakeModel:
    """Knows of a sequence only what stands in the blocks of its table.

    Cells are None until written, once, but for those of rejected drafts: they are never read, and written again.
    """

    def __init__(self, blocks: int, random: Random) -> None:
        self.failures = random.choice([0, 0.003, 0.03])  # share of the rows
        self.cells: list[int | None] = [None] * (blocks * BLOCK_SIZE)
        self.random = random
        self.said: list[list[Sample] | str] = []  # by the last step

    def run(self, batch: Batch) -> StepResult:
        for chunk in batch.chunks:
            for block in chunk.blocks[-(-chunk.start // BLOCK_SIZE) :]:  # not begun: whatever they hold is void
                self.cells[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] = [None] * BLOCK_SIZE
        contexts = [self.read(chunk) for chunk in batch.chunks]  # no chunk sees what another adds in the same step
        samples = [self.compute(*work) for work in zip(map(self.known, batch.chunks), contexts, strict=True)]
        found = {
            place: self.find(chunk, context)
            for place, (chunk, context) in enumerate(zip(batch.chunks, contexts, strict=True))
            if chunk.read_rows and not isinstance(samples[place], str)
        }
        self.said = [said for said, chunk in zip(samples, batch.chunks, strict=True) if chunk.sampling]
        return StepResult(samples, found)

    def known(self, chunk: Chunk) -> Chunk:
        """With the token that it awaits from the last step; any, where that has failed."""
        if chunk.awaits is None:
            return chunk
        require(len(chunk.tokens) == chunk.start, "what is awaited is known")
        said = self.said[chunk.awaits]
        token = 0 if isinstance(said, str) else said[-1].token
        return replace(chunk, tokens=[*chunk.tokens, token])

    def find(self, chunk: Chunk, context: list[int]) -> Finding:
        assert chunk.reading is not None
        rows = chunk.read_rows
        require(rows.start >= chunk.start, "a row is to be read that this step does not compute")
        contents = [context[row] for row in rows]
        finding = read(chunk.reading, contents, [*chunk.tokens, 0][rows.start + 1 : rows.stop + 1])
        if finding.total and chunk.reading.after(len(rows), chunk.prompt_length) is None:
            return Finding(rows=finding.rows, vector=finding.total)
        return finding

    def read(self, chunk: Chunk) -> list[int]:
        rows = (self.cells[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] for block in chunk.blocks)
        context = [content for content in list(chain.from_iterable(rows))[: chunk.start] if content is not None]
        if len(context) < chunk.start or not len(chunk):
            raise Violation("a chunk is empty, or builds on positions that were never computed")
        if REJECTED in context:
            raise Violation("a chunk builds on a draft that was rejected")
        return context

    def compute(self, chunk: Chunk, context: list[int]) -> list[Sample] | str:
        if chunk.sampling is not None and self.random.random() < self.failures:
            for position in range(chunk.start, chunk.end):
                self.write(chunk, position, REJECTED if chunk.drafts else NAN)
            return "nan"
        for position in range(chunk.start, chunk.stop):
            context.append(cell(context, chunk.tokens[position]))
            self.write(chunk, position, context[-1])
        return self.choose(chunk, context) if chunk.sampling else []

    def choose(self, chunk: Chunk, context: list[int]) -> list[Sample]:
        """A sample, and one more for each draft that comes true; now and then one of those rows fails."""
        assert chunk.sampling is not None
        samples = [Sample(choose(context, chunk.sampling))]
        is_true = True
        for position, draft in enumerate(chunk.drafts, chunk.stop):
            is_true = is_true and samples[-1].token == draft and self.random.random() >= self.failures
            self.write(chunk, position, cell(context, draft) if is_true else REJECTED)
            if is_true:
                context.append(cell(context, draft))
                samples.append(Sample(choose(context, chunk.sampling)))
        return samples

    def write(self, chunk: Chunk, position: int, content: int) -> None:
        where = chunk.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        if self.cells[where] not in (None, REJECTED):
            raise Violation("a position is computed twice, or in a block that is someone else's")
        self.cells[where] = content
