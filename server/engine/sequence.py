"""How far one request is: what is known of it, how much of that is in the KV cache, and in which blocks."""

from dataclasses import dataclass, field
from typing import Self

from model.batch import Chunk, Finding, Reading, Sample, Sampling
from server.engine.constraint import Constraint
from server.engine.drafting import Drafter
from server.engine.messages import FinishReason, Submit

Root = tuple[str | None, str]  # adapter and salt


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """A request on its way: `tokens` is what is known, `computed` how much of it is in the KV cache.

    There is no phase: a prompt, a prompt after a prefix hit, the last token of a growing output and a whole text
    that lost its blocks differ only in `pending`.
    """

    id: int
    tokens: list[int]  # prompt and output; grows at its end only
    prompt_length: int
    max_tokens: int
    ending_ids: frozenset[int]
    sampling: Sampling
    adapter: str | None = None  # a digest
    salt: str = ""
    priority: int = 0  # the lowest starts first, and keeps its blocks longest
    reading: Reading | None = None  # what of the prompt is still to be read
    computed: int = 0
    blocks: list[int] = field(default_factory=list)  # blocks[p // block_size] is the KV block of position p
    contents: list[int] = field(default_factory=list)  # content ids of the committed blocks, which lead `blocks`
    cached_tokens: int | None = None  # prompt tokens that the prefix cache had; None until the first start
    drafter: Drafter | None = field(init=False)  # None once drafts are not to be trusted
    has_started: bool = False  # it has been in a step of this engine
    constraint: Constraint | None = None  # set before the first step where `sampling` has a grammar

    def __post_init__(self) -> None:
        self.drafter = Drafter(self.tokens, self.prompt_length)

    @classmethod
    def of(cls, order: Submit) -> Self:
        return cls(
            id=order.id,
            tokens=[*order.prompt, *order.output],
            prompt_length=len(order.prompt),
            max_tokens=order.max_tokens,
            ending_ids=frozenset(order.ending_ids),
            sampling=order.sampling,
            adapter=order.adapter,
            salt=order.salt,
            reading=order.reading and order.reading.after(0, len(order.prompt)),
            cached_tokens=order.cached_tokens,
            priority=order.priority,
        )

    @property
    def root(self) -> Root:
        """What its first block hangs from in the prefix cache: what another root's sequences computed is not found."""
        return self.adapter, self.salt

    @property
    def pending(self) -> int:
        """Tokens known and not yet computed."""
        return len(self.tokens) - self.computed

    @property
    def output_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def reach(self) -> int:
        """The most tokens it can ever have in the cache: the last one it chooses is reported, never computed."""
        return self.prompt_length + max(self.max_tokens - 1, 0)

    @property
    def reusable(self) -> int:
        """So many of its first rows may come from a cache: one at least is left to compute, and all that are read."""
        last = len(self.tokens) - 1
        return last if self.reading is None else min(last, self.reading.start)

    @property
    def finish(self) -> FinishReason | None:
        """Why there is nothing more to choose, if so; what chooses nothing ends when all of it is computed."""
        if self.output_length and (self.tokens[-1] in self.ending_ids or self._is_complete):
            return "stop"
        is_full = self.output_length >= self.max_tokens if self.max_tokens else not self.pending
        return "length" if is_full else None

    @property
    def _is_complete(self) -> bool:
        return self.constraint is not None and self.constraint.is_complete

    def propose(self, most: int, price: float) -> tuple[int, ...]:
        """Guesses at the next tokens, at most so many, which pay at this price and which the grammar allows."""
        assert self.drafter is not None, "drafts are not to be trusted"
        if self.constraint is None:
            return self.drafter.propose(most, price)
        if self.constraint.is_late:
            return ()
        return self.constraint.forced(most) or self.constraint.admissible(self.drafter.propose(most, price))

    def accept(self, samples: list[Sample]) -> list[Sample]:
        """Adds what a step chose, as far as the end, and returns that; all of it but the last is computed already."""
        for count, sample in enumerate(samples, 1):
            self.tokens.append(sample.token)
            if self.constraint is not None and sample.token not in self.ending_ids:
                self.constraint.accept(sample.token)
            if self.finish:
                return samples[:count]
        return samples

    def learn(self, finding: Finding) -> None:
        """Takes note of what a step has read."""
        assert self.reading is not None, "there was nothing to read"
        self.reading = self.reading.after(finding.rows, self.prompt_length, finding.total)

    def chunk(self, amount: int, start: int | None = None) -> Chunk:
        """The next `amount` pending tokens; the last of them lets the step choose the token that follows.

        `start` is `computed`, but where a step under way moves that. What a grammar allows there is for the scheduler
        to add, with the drafts.
        """
        start = self.computed if start is None else start
        stop = start + amount
        sampling = self.sampling if stop == len(self.tokens) and self.max_tokens else None
        return Chunk(
            self.tokens,
            start,
            stop,
            self.blocks,
            self.prompt_length,
            sampling,
            adapter=self.adapter,
            reading=self.reading,
        )

    def goes_on_after(self, chunk: Chunk) -> bool:
        """Unless what the chunk chooses ends it."""
        if chunk.sampling is None:
            return chunk.stop < len(self.tokens)
        return chunk.stop + 1 - self.prompt_length < self.max_tokens

    def awaiting(self, place: int) -> Chunk:
        """The token after all that are known, which is choice `place` of the step under way."""
        start = len(self.tokens)
        return Chunk(
            self.tokens,
            start,
            start + 1,
            self.blocks,
            self.prompt_length,
            self.sampling,
            adapter=self.adapter,
            awaits=place,
        )
