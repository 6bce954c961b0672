"""Who computes how many tokens in the next step, and what the step's result means for each of them."""

import math
from bisect import insort_left, insort_right
from collections import deque
from dataclasses import dataclass, replace
from itertools import count

from model.batch import Batch, Chunk, DeadEnd, Finding, Sample, StepResult
from server.engine.block_pool import BlockPool, Key, Prefix
from server.engine.drafting import price
from server.engine.messages import Delta, FinishReason, Stats
from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one step takes on. Each running sequence has at least one token in every step."""

    max_sequences: int
    step_tokens: int  # of a prompt's beginning; further on fewer, that take as long
    drafted_tokens: int = 0  # a step of fewer tokens is filled up to so many with drafts; 0 for no speculation
    context_rate: float = math.inf  # positions to which a token's attention takes as long as all else of it

    @property
    def max_running(self) -> int:
        return min(self.max_sequences, self.step_tokens)


def _priority(sequence: Sequence) -> int:
    return sequence.priority


@dataclass(frozen=True, slots=True)
class _Step:
    """One under way: chunk i belongs to sequence i."""

    chunks: list[Chunk]
    sequences: list[Sequence]


class Scheduler:
    """Lets `computed` catch up with `tokens`: the most urgent first, and of equals the first to come.

    Within a priority, `running` followed by `waiting` is the order of arrival, always: the head of the queue is the
    only one to start, and the youngest of the least urgent running sequences the only one to lose its blocks. Three
    things follow.
    Decodes never starve: a sequence starts only with budget that those before it left over, so only the last to have
    started can have more than one token pending, and it is served last.
    Nothing livelocks: the most urgent running sequence is never preempted and advances in every step. A sequence
    waits for ever only where more urgent ones keep coming: nobody is stopped for them, and nobody ages.
    Waiting for another's block ends: see `_prefix_to_start`.
    """

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        self.limits = limits
        self.pool = pool
        self.running: list[Sequence] = []  # in the order in which they have started
        self.waiting: deque[Sequence] = deque()  # most urgent first, then oldest first
        self.started: list[int] = []  # ids that the last `schedule` put into a step for the first time
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.drafts_proposed = 0
        self.drafts_accepted = 0
        self._live: dict[int, Sequence] = {}
        self._steps: deque[_Step] = deque()  # under way: the one that `apply` closes next, and the one ahead of it
        self._cancelled: set[int] = set()  # while their chunks are under way
        self._step_tokens = 0

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence that is known to fit."""
        assert sequence.id not in self._live, "a sequence's id is unique in its life"
        assert sequence.prompt_length > 0, "there is nothing to compute"
        assert self.pool.span(sequence.reach) <= self.pool.total, "it can never fit"
        self._live[sequence.id] = sequence
        insort_right(self.waiting, sequence, key=_priority)

    def cancel(self, id: int) -> None:
        """Forgets a sequence, at the end of the step if one is under way; ignores ids that are not live."""
        sequence = self._live.get(id)
        if sequence is None:
            return
        if self._steps and sequence in self.running:
            self._cancelled.add(id)  # the model is writing to its blocks
        else:
            self._leave(sequence)

    def schedule(self) -> Batch | None:
        """The next step, for `apply` to close; None if no sequence is live."""
        assert not self._steps, "the last step has not been applied"
        self.started = []
        self._step_tokens = 0
        if not self._live:
            return None
        self._secure_blocks()
        chunks = self._fill()
        self._add_drafts(chunks)
        self._add_masks(chunks)
        self._step_tokens = sum(map(len, chunks))
        return self._begin(chunks, [*self.running])

    def _begin(self, chunks: list[Chunk], sequences: list[Sequence]) -> Batch:
        self._steps.append(_Step(chunks, sequences))
        return Batch(chunks)

    def ahead(self) -> Batch | None:
        """The step after the one under way, whose tokens are still being chosen; None where those come first.

        The two are computed one after the other, so it may be told to the device at once. Whoever ends meanwhile is in
        it for nothing, and what is computed of it is dropped. Its blocks are free nevertheless as soon as that is
        known: whatever is to be written to them is told later, and so computed later.
        Nobody starts or loses blocks in it, and nothing is drafted: where one could start, or a choice may depend on
        more than its row, a step begins as ever, with `schedule`.
        """
        (step,) = self._steps
        if self._prefix_to_start(set()) is not None or not all(chunk.is_foreseeable for chunk in step.chunks):
            return None
        places = count()
        going_on = [
            (sequence, chunk, place)
            for sequence, chunk in zip(step.sequences, step.chunks, strict=True)
            for place in [next(places) if chunk.sampling else None]
            if sequence in self and sequence.id not in self._cancelled and sequence.goes_on_after(chunk)
        ]
        awaited = [sequence for sequence, _, place in going_on if place is not None]
        missing = sum(max(self.pool.missing(sequence, 1), 0) for sequence in awaited)
        if not going_on or missing > self.pool.available:
            return None
        for sequence in awaited:
            self.pool.extend(sequence, 1)
        chunks, budget = [], self.limits.step_tokens - len(awaited)
        for sequence, chunk, place in going_on:
            if place is not None:
                chunks.append(sequence.awaiting(place))
            else:  # the last one, as only that can be behind
                chunks.append(self._take(sequence, budget, chunk.stop)[0])
        return self._begin(chunks, [sequence for sequence, *_ in going_on])

    def retract(self) -> None:
        """Forgets the step ahead, if there is one: it is not to be computed."""
        if len(self._steps) > 1:
            self._steps.pop()

    def apply(self, result: StepResult) -> list[Delta]:
        """Closes the step: what it added to each sequence. Finished sequences have given their blocks back."""
        assert self._steps, "no step is under way"
        step = self._steps[0]
        self._step_tokens = sum(map(len, step.chunks))
        deltas = [
            self._advance(sequence, chunk, samples, result.findings.get(place))
            for place, (sequence, chunk, samples) in enumerate(
                zip(step.sequences, step.chunks, result.samples, strict=True)
            )
            if sequence in self  # else it has left since this step went ahead
        ]
        self._steps.popleft()
        cancelled, self._cancelled = self._cancelled, set()
        for id in cancelled:
            if id in self._live:
                self._leave(self._live[id])
        return [delta for delta in deltas if delta is not None and delta.id not in cancelled]

    def __contains__(self, sequence: Sequence) -> bool:
        return self._live.get(sequence.id) is sequence

    def stats(self, step_seconds: float, invariant_violations: int) -> Stats:
        """The state after a step, with the two figures that only its caller has."""
        return Stats(
            running=len(self.running),
            waiting=len(self.waiting),
            blocks_free=self.pool.free,
            blocks_cached=self.pool.cached,
            blocks_used=self.pool.used,
            preemptions=self.preemptions,
            prefix_queries=self.prefix_queries,
            prefix_hits=self.prefix_hits,
            drafts_proposed=self.drafts_proposed,
            drafts_accepted=self.drafts_accepted,
            step_tokens=self._step_tokens,
            step_seconds=step_seconds,
            invariant_violations=invariant_violations,
        )

    def check(self) -> str | None:
        """The first broken invariant of scheduler and pool, in words; None if all hold."""
        if sorted(self._live.values(), key=_priority) != sorted([*self.running, *self.waiting], key=_priority):
            return "within a priority, the sequences running and waiting are not the live ones in order of arrival"
        if [*self.waiting] != sorted(self.waiting, key=_priority):
            return "a more urgent sequence waits behind a less urgent one"
        if len(self.running) > self.limits.max_running:
            return f"{len(self.running)} sequences run, which is more than {self.limits.max_running}"
        for sequence in self.waiting:
            if sequence.blocks or sequence.computed:
                return f"sequence {sequence.id} waits and holds blocks {sequence.blocks}"
        for sequence in self.running:
            if not sequence.pending:
                return f"sequence {sequence.id} runs with nothing to compute"
            if sequence.pending > 1 and sequence is not self.running[-1] and not self._steps:
                return f"sequence {sequence.id} is behind, yet younger ones run"
            if self.pool.span(sequence.computed) > len(sequence.blocks):
                return f"sequence {sequence.id} has {sequence.computed} tokens computed in too few blocks"
        return self.pool.check(self.running)  # the waiting ones hold nothing, as just seen

    def _secure_blocks(self) -> None:
        """Every running sequence gets the blocks it needs, the most urgent first.

        While there are too few, the youngest of the least urgent give up theirs.
        """
        ranked = sorted(self.running, key=_priority)
        secured = 0
        while secured < len(ranked):
            if self.pool.extend(ranked[secured]):
                secured += 1
            else:
                self._preempt(ranked.pop())

    def _preempt(self, sequence: Sequence) -> None:
        """Sends a running sequence back to the queue, before its equals, to be computed again from there."""
        self.running.remove(sequence)
        self.pool.release(sequence)
        insort_left(self.waiting, sequence, key=_priority)
        self.preemptions += 1

    def _fill(self) -> list[Chunk]:
        """A chunk for every running sequence, in the order of their starts; more start while they leave budget."""
        chunks: list[Chunk] = []
        budget = self.limits.step_tokens
        promised: set[Key | None] = set()
        while budget and (len(chunks) < len(self.running) or self._start(promised)):
            sequence = self.running[len(chunks)]
            chunk, budget = self._take(sequence, budget, sequence.computed)
            promised.add(self.pool.key_after(sequence, sequence.contents, chunk.stop))
            chunks.append(chunk)
        return chunks

    def _take(self, sequence: Sequence, budget: int, start: int) -> tuple[Chunk, int]:
        """The sequence's chunk from there, and what it leaves of the budget: nothing where the sequence stays behind.

        Tokens far into a prompt count as more than one, so that those who decode beside it wait for no step longer
        than for one at its beginning.
        """
        pending = len(sequence.tokens) - start
        weight = 1 + start / self.limits.context_rate if pending > 1 else 1.0
        chunk = sequence.chunk(min(pending, max(int(budget / weight), 1)), start)
        is_behind = len(chunk) < pending
        return chunk, 0 if is_behind else budget - math.ceil(len(chunk) * weight)

    def _start(self, promised: set[Key | None]) -> bool:
        """Moves the head of the queue to `running`, if it may."""
        prefix = self._prefix_to_start(promised)
        if prefix is None:
            return False
        sequence = self.waiting.popleft()
        self.running.append(sequence)
        self.pool.share(sequence, prefix)
        extended = self.pool.extend(sequence)
        assert extended, "the cost was wrong"
        if not sequence.has_started:
            self._note_start(sequence)
        return True

    def _prefix_to_start(self, promised: set[Key | None]) -> Prefix | None:
        """What the cache has of the head of the queue, if there is room for all its tokens and for the others to grow.

        It waits as well while the block it could use next is promised by this very step: one step later it finds it
        in the cache instead of computing it twice. This ends: only running sequences make promises, none but more
        urgent ones join them meanwhile, and each such step brings them closer to their ends.
        """
        if not self.waiting or len(self.running) == self.limits.max_running:
            return None
        sequence = self.waiting[0]
        prefix = self.pool.find(sequence)
        key = self.pool.next_key(sequence, prefix)
        if key is not None and key in promised:
            return None
        growth = len(self.running)  # each may soon want one block more; taking it from a newcomer would waste its work
        return prefix if self.pool.cost(sequence, prefix) <= self.pool.available - growth else None

    def _note_start(self, sequence: Sequence) -> None:
        """What is counted once in a sequence's life, however often it is preempted or resumed and starts again."""
        sequence.has_started = True
        self.started.append(sequence.id)
        if sequence.cached_tokens is not None:
            return
        sequence.cached_tokens = sequence.computed
        if self.pool.prefix_cache:
            self.prefix_queries += sequence.prompt_length
            self.prefix_hits += sequence.computed

    def _add_drafts(self, chunks: list[Chunk]) -> None:
        """Fills a small step up with drafts, as many for each sequence that chooses, where their rows cost little.

        They have nothing to do with who runs or starts: without them all else would be as it is. They follow single
        tokens only: a step that failed because of them then leaves nobody behind by more than that (see `_fail`).
        """
        rows = sum(map(len, chunks))
        room = min(self.limits.drafted_tokens, self.limits.step_tokens) - rows
        if not 0 < len(chunks) <= room:
            return
        for place, (sequence, chunk) in enumerate(zip(self.running, chunks, strict=True)):
            if chunk.sampling and len(chunk) == 1 and sequence.drafter:
                most = min(room // len(chunks), sequence.reach - len(sequence.tokens))
                drafts = sequence.propose(most, price(rows))
                drafts = drafts[: self._make_room(sequence, len(drafts))]
                chunks[place] = replace(chunk, drafts=drafts)
                self.drafts_proposed += len(drafts)

    def _add_masks(self, chunks: list[Chunk]) -> None:
        """Lets it be computed, while the step is, which tokens a grammar allows after each row that chooses."""
        for place, (sequence, chunk) in enumerate(zip(self.running, chunks, strict=True)):
            if chunk.sampling and sequence.constraint is not None:
                chunks[place] = replace(chunk, masks=sequence.constraint.masks(chunk.drafts))

    def _make_room(self, sequence: Sequence, drafts: int) -> int:
        """How many of so many drafts have their place in a block.

        Blocks are taken for them only where one is left for each running sequence: so nobody is preempted for a
        draft, now or when each has its next token.
        """
        if self.pool.missing(sequence, drafts) <= self.pool.available - len(self.running):
            self.pool.extend(sequence, drafts)
        return min(drafts, len(sequence.blocks) * self.pool.block_size - len(sequence.tokens))

    def _advance(
        self, sequence: Sequence, chunk: Chunk, samples: list[Sample] | str, finding: Finding | None
    ) -> Delta | None:
        """Moves one sequence by what the step computed of it, read of it and chose for it."""
        if isinstance(samples, str):
            return self._fail(sequence, chunk, samples)
        is_late = chunk.masks is not None and not samples
        assert bool(samples) == (chunk.sampling is not None) or is_late, "a token is chosen just where one is wanted"
        assert (finding.rows if finding else 0) == len(chunk.read_rows), "rows are read just where they are wanted"
        kept = sequence.accept(samples)
        sequence.computed = chunk.stop + max(len(kept) - 1, 0)  # the drafts that came true have been computed
        sequence.computed -= is_late  # its last token is computed once more, to choose then
        self.pool.commit(sequence)
        self.drafts_accepted += max(len(kept) - 1, 0)
        if finding is not None:
            sequence.learn(finding)
            finding = None if finding.total else finding  # a sum of some rows is nobody's but the next step's
        finish = sequence.finish
        if finish:
            self._leave(sequence)
        return self._delta(sequence, kept, finish, finding=finding) if kept or finish or finding else None

    def _fail(self, sequence: Sequence, chunk: Chunk, error: str) -> Delta | None:
        """Ends a sequence that could not be computed; if it had drafts, it is computed once more without them.

        A draft's row may be what failed: 0 times what is not finite is not 0, so it can spoil the rows before it,
        whose attention gives it no weight.
        """
        if chunk.drafts:
            sequence.drafter = None
            return None
        is_dead_end = isinstance(error, DeadEnd)
        if not is_dead_end:
            self.pool.forget(sequence)  # what misled it may stand in any block it read
        self._leave(sequence)
        return self._delta(sequence, [], "dead_end" if is_dead_end else "error", error=str(error))

    def _delta(
        self,
        sequence: Sequence,
        samples: list[Sample],
        finish: FinishReason | None,
        *,
        error: str | None = None,
        finding: Finding | None = None,
    ) -> Delta:
        logprobs = [sample.logprobs for sample in samples if sample.logprobs is not None]
        return Delta(
            id=sequence.id,
            tokens=[sample.token for sample in samples],
            logprobs=logprobs or None,
            finish=finish,
            cached_tokens=sequence.cached_tokens or 0,
            error=error,
            finding=finding,
        )

    def _leave(self, sequence: Sequence) -> None:
        """Ends a sequence's stay, wherever it stands."""
        del self._live[sequence.id]
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.pool.release(sequence)
