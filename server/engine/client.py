"""The engine as the API process sees it: an asyncio facade over the child process."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from model.batch import Sampling
from server.engine.messages import Delta, ModelCard, Progress, Ready, Stats


@dataclass(frozen=True, slots=True)
class Order:
    """A sequence to run."""

    prompt: list[int]
    max_tokens: int
    ending_ids: list[int]
    sampling: Sampling


class TokenStream:
    """The deltas of one sequence. `cancel` may be called at any time and any number of times."""

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def cancel(self) -> None: ...


class EngineClient:
    card: ModelCard | None  # known once the checkpoint's header is read
    ready: Ready | None  # known once the engine computes
    progress: Progress | None  # the last news of the start
    failure: str | None  # why the engine is gone
    stats: Stats | None  # after the last step

    async def start(self) -> None:
        """Starts the child and returns at once."""

    async def stop(self) -> None: ...

    @property
    def longest(self) -> int:
        """Tokens that one sequence can ever reach: the context, or less where the cache is smaller."""

    def submit(self, orders: list[Order]) -> list[TokenStream]:
        """Queues all of them or raises errors.ModelLoading, EngineGone, Overloaded: nothing is queued halfway."""
