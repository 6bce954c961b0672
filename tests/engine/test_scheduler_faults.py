"""Can the simulation fail? Each fault planted here must be found, and by the check that is meant for it."""

from dataclasses import replace

import pytest
from simulation import Violation, Watched, World

from model.batch import Chunk, Finding, Sample
from server.engine.block_pool import BlockPool, Key, Prefix
from server.engine.messages import Delta
from server.engine.sequence import Sequence

Samples = list[Sample] | str


class CommitsTooEarly(BlockPool):
    def extend(self, sequence: Sequence, drafts: int = 0) -> bool:
        extended, computed = super().extend(sequence, drafts), sequence.computed
        if extended:
            sequence.computed = len(sequence.tokens)
            self.commit(sequence)
            sequence.computed = computed
        return extended


class ReleasesTwice(BlockPool):
    def release(self, sequence: Sequence) -> None:
        blocks = sequence.blocks
        super().release(sequence)
        sequence.blocks = blocks
        super().release(sequence)


class ForgetsToRelease(Watched):
    def _leave(self, sequence: Sequence) -> None:
        sequence.blocks = []
        super()._leave(sequence)


class TakesTheNeighboursBlock(BlockPool):
    def _take(self) -> int:
        block = super()._take()
        if self.used < 4:
            return block
        self._references[block] = 0
        self._retire(block)
        neighbour = next(other for other, references in enumerate(self._references) if references)
        self._references[neighbour] += 1
        return neighbour


class SwapsBlocks(BlockPool):
    def extend(self, sequence: Sequence, drafts: int = 0) -> bool:
        extended = super().extend(sequence, drafts)
        sequence.blocks[-2:] = sequence.blocks[:-3:-1]
        return extended


class CountsOneTokenTooMany(BlockPool):
    def share(self, sequence: Sequence, prefix: Prefix) -> None:
        super().share(sequence, prefix)
        sequence.computed += bool(prefix.blocks)


class LeavesNothingToCompute(BlockPool):
    def next_key(self, sequence: Sequence, prefix: Prefix) -> Key | None:
        return self.key_after(sequence, prefix.contents, len(sequence.tokens))


class IgnoresWhatStandsBefore(BlockPool):
    def key_after(self, sequence: Sequence, contents: list[int], stop: int) -> Key | None:
        key = super().key_after(sequence, contents, stop)
        return key and (sequence.root, key[1])


class KeepsEvictedContent(BlockPool):
    def _unlist(self, block: int) -> None:
        self._keys[block] = None


class NeverForgets(BlockPool):
    def forget(self, sequence: Sequence) -> None:
        pass


class CommitsFailedRows(Watched):
    def _fail(self, sequence: Sequence, chunk: Chunk, error: str) -> Delta | None:
        sequence.computed = chunk.stop
        self.pool.commit(sequence)
        return super()._fail(sequence, chunk, error)


class PreemptsTheOldest(Watched):
    def _secure_blocks(self) -> None:
        self.running.reverse()
        super()._secure_blocks()
        self.running.reverse()


class PreemptsTheMostUrgent(Watched):
    def _secure_blocks(self) -> None:
        self._turn_over()
        super()._secure_blocks()
        self._turn_over()

    def _turn_over(self) -> None:
        for sequence in self._live.values():
            sequence.priority = -sequence.priority
        self.waiting.reverse()


class KnowsNoPriority(Watched):
    def add(self, sequence: Sequence) -> None:
        super().add(sequence)
        self.waiting.remove(sequence)
        self.waiting.append(sequence)


class ServesTheLastFirst(Watched):
    def add(self, sequence: Sequence) -> None:
        super().add(sequence)
        self.waiting.rotate(1)


class AsksTooMuch(BlockPool):
    def cost(self, sequence: Sequence, prefix: Prefix) -> int:
        return super().cost(sequence, prefix) + 1


class ReissuesContentIds(BlockPool):
    def commit(self, sequence: Sequence) -> None:
        super().commit(sequence)
        self._last_content %= self.total


class NeverStopsInTime(Watched):
    def add(self, sequence: Sequence) -> None:
        sequence.ending_ids = frozenset()
        super().add(sequence)


class CommitsRejectedDrafts(Watched):
    def _advance(self, sequence: Sequence, chunk: Chunk, samples: Samples, finding: Finding | None) -> Delta | None:
        if chunk.drafts and not isinstance(samples, str):
            length = len(sequence.tokens)
            sequence.tokens.extend(chunk.drafts)
            sequence.computed = chunk.end
            self.pool.commit(sequence)
            del sequence.tokens[length:]
        return super()._advance(sequence, chunk, samples, finding)


class CountsARejectedDraft(Watched):
    def _advance(self, sequence: Sequence, chunk: Chunk, samples: Samples, finding: Finding | None) -> Delta | None:
        delta = super()._advance(sequence, chunk, samples, finding)
        if len(samples) <= len(chunk.drafts) and sequence.blocks:
            sequence.computed += 1
        return delta


class CountsNoAcceptedDraft(Watched):
    def _advance(self, sequence: Sequence, chunk: Chunk, samples: Samples, finding: Finding | None) -> Delta | None:
        delta = super()._advance(sequence, chunk, samples, finding)
        if delta and len(delta.tokens) > 1 and sequence.blocks:
            sequence.computed = chunk.stop
        return delta


class AcceptsEveryDraft(Watched):
    def _advance(self, sequence: Sequence, chunk: Chunk, samples: Samples, finding: Finding | None) -> Delta | None:
        if chunk.drafts and not isinstance(samples, str):
            samples = [*map(Sample, chunk.drafts), samples[-1]]
        return super()._advance(sequence, chunk, samples, finding)


class AcceptsDraftsPastTheEnd(Watched):
    def _advance(self, sequence: Sequence, chunk: Chunk, samples: Samples, finding: Finding | None) -> Delta | None:
        ending_ids = sequence.ending_ids
        if len(samples) > 1:
            sequence.ending_ids = frozenset()
        delta = super()._advance(sequence, chunk, samples, finding)
        sequence.ending_ids = ending_ids
        return delta


class DraftsPastTheReach(Watched):
    def _add_drafts(self, chunks: list[Chunk]) -> None:
        limits = [sequence.max_tokens for sequence in self.running]
        for sequence in self.running:
            sequence.max_tokens += 1
        super()._add_drafts(chunks)
        for sequence, limit in zip(self.running, limits, strict=True):
            sequence.max_tokens = limit


class DraftsInBigSteps(Watched):
    def _add_drafts(self, chunks: list[Chunk]) -> None:
        if self.limits.drafted_tokens:
            self.limits = replace(self.limits, drafted_tokens=self.limits.step_tokens)
        super()._add_drafts(chunks)


class ReadsAgainAfterAPreemption(Watched):
    def _preempt(self, sequence: Sequence) -> None:
        sequence.reading = sequence.reading and replace(sequence.reading, start=0)
        super()._preempt(sequence)


class ForgetsTheSumAtAPreemption(Watched):
    def _preempt(self, sequence: Sequence) -> None:
        if sequence.reading is not None and sequence.reading.total:
            sequence.reading = replace(sequence.reading, total=bytes(16))
        super()._preempt(sequence)


class TakesFromTheCacheWhatIsToBeRead(BlockPool):
    def next_key(self, sequence: Sequence, prefix: Prefix) -> Key | None:
        return self.key_after(sequence, prefix.contents, len(sequence.tokens) - 1)


FAULTS = [
    (Watched, CommitsTooEarly, "blocks committed, but"),
    (Watched, ReleasesTwice, "released twice"),
    (ForgetsToRelease, BlockPool, "but the sequences hold"),
    (Watched, TakesTheNeighboursBlock, "which others can read"),
    (Watched, SwapsBlocks, "which others can read|never computed"),
    (Watched, CountsOneTokenTooMany, "never computed|computed twice"),
    (Watched, LeavesNothingToCompute, "nothing to compute"),
    (Watched, IgnoresWhatStandsBefore, "output is wrong"),
    (Watched, KeepsEvictedContent, "contents are listed"),
    (Watched, ReissuesContentIds, "output is wrong"),
    (CommitsFailedRows, NeverForgets, "output is wrong|nothing to compute"),
    (PreemptsTheOldest, BlockPool, "order of arrival"),
    (PreemptsTheMostUrgent, BlockPool, "does not move|order of arrival|waits behind"),
    (KnowsNoPriority, BlockPool, "waits behind"),
    (ServesTheLastFirst, BlockPool, "order of arrival|waits behind"),
    (Watched, AsksTooMuch, "does not move"),
    (NeverStopsInTime, BlockPool, "output is wrong"),
    (CommitsRejectedDrafts, BlockPool, "blocks committed, but"),
    (CountsARejectedDraft, BlockPool, "nothing to compute|a chunk is empty"),
    (CountsNoAcceptedDraft, BlockPool, "computed twice|is behind"),
    (AcceptsEveryDraft, BlockPool, "output is wrong|a draft that was rejected"),
    (AcceptsDraftsPastTheEnd, BlockPool, "output is wrong"),
    (DraftsPastTheReach, BlockPool, "beyond what the sequence can reach"),
    (DraftsInBigSteps, BlockPool, "a big step has drafts"),
]
READING_FAULTS = [
    (ReadsAgainAfterAPreemption, BlockPool, "what was read is wrong|not all was read"),
    (ForgetsTheSumAtAPreemption, BlockPool, "not all was read"),
    (Watched, TakesFromTheCacheWhatIsToBeRead, "this step does not compute"),
]
BEHAVIOUR = (
    "output is wrong|never computed|computed twice|released twice|order of arrival|does not move"
    "|started first|draft that was rejected|beyond what|big step|what is chosen is not known"
)


def search(scheduler: type[Watched], pool: type[BlockPool], *, reads: bool = False) -> None:
    for seed in range(40):
        World(seed, scheduler, pool, reads=reads).run(2_000)


@pytest.mark.parametrize(("scheduler", "pool", "finding"), FAULTS)
def test_the_simulation_finds(scheduler: type[Watched], pool: type[BlockPool], finding: str) -> None:
    with pytest.raises((Violation, AssertionError), match=finding):
        search(scheduler, pool)


@pytest.mark.parametrize(("scheduler", "pool", "finding"), READING_FAULTS)
def test_the_simulation_finds_where_prompts_are_read(
    scheduler: type[Watched], pool: type[BlockPool], finding: str
) -> None:
    with pytest.raises((Violation, AssertionError), match=finding):
        search(scheduler, pool, reads=True)


@pytest.mark.parametrize(("scheduler", "pool"), [fault[:2] for fault in FAULTS])
def test_what_sequences_go_through_reveals_it_without_the_audit(
    scheduler: type[Watched], pool: type[BlockPool]
) -> None:
    blind = type("Blind", (scheduler,), {"check": lambda self: None})
    with pytest.raises((Violation, AssertionError), match=BEHAVIOUR):
        search(blind, pool)


def test_the_same_search_finds_nothing_where_nothing_is_wrong() -> None:
    search(Watched, BlockPool)
