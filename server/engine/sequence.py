"""How far one request is: what is known of it, how much of that is in the KV cache, and in which blocks."""

from dataclasses import dataclass, field
from typing import Self

from model.batch import Chunk, Sampling
from server.engine.messages import FinishReason, Submit


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
    computed: int = 0
    blocks: list[int] = field(default_factory=list)  # blocks[p // block_size] is the KV block of position p
    contents: list[int] = field(default_factory=list)  # content ids of the committed blocks, which lead `blocks`
    cached_tokens: int | None = None  # prompt tokens that the prefix cache had; None until the first start
    has_started: bool = False  # it has been in a step of this engine

    @classmethod
    def of(cls, order: Submit) -> Self:
        return cls(
            id=order.id,
            tokens=[*order.prompt, *order.output],
            prompt_length=len(order.prompt),
            max_tokens=order.max_tokens,
            ending_ids=frozenset(order.ending_ids),
            sampling=order.sampling,
            cached_tokens=order.cached_tokens,
        )

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
        return self.prompt_length + self.max_tokens - 1

    @property
    def finish(self) -> FinishReason | None:
        """Why there is nothing more to choose, if so."""
        if self.output_length and self.tokens[-1] in self.ending_ids:
            return "stop"
        return "length" if self.output_length >= self.max_tokens else None

    def chunk(self, amount: int) -> Chunk:
        """The next `amount` pending tokens; the last of them lets the step choose the token that follows."""
        stop = self.computed + amount
        sampling = self.sampling if stop == len(self.tokens) else None
        return Chunk(self.tokens, self.computed, stop, self.blocks, self.prompt_length, sampling)
