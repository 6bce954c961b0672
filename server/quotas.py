"""How much each key may take: requests and tokens a minute, and generations at once."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.errors import RateLimited

BUSY_RETRY_S = 1.0  # when one of a key's own generations ends is not known

_ROUNDING = 1e-6  # who has waited as told is not to be told to wait for a billionth more

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """None is for no limit."""

    concurrency: int | None = None  # generations at once
    requests: int | None = None  # a minute
    tokens: int | None = None  # a minute, of prompts and answers


UNLIMITED = Quota()


class Bucket:
    """Full at first, and filled again evenly, from empty within a minute.

    It falls below empty when more was used than foreseen: then nothing can be taken until that has flowed back.
    """

    def __init__(self, capacity: int, clock: Clock) -> None:
        self.capacity = capacity
        self._clock = clock
        self._level = float(capacity)
        self._filled = clock()

    @property
    def level(self) -> float:
        now = self._clock()
        self._level = min(self._level + (now - self._filled) * self.capacity / 60, self.capacity)
        self._filled = now
        return self._level

    def take(self, amount: float) -> None:
        """A negative amount is given back."""
        self._level = min(self.level - amount, self.capacity)

    def wait_s(self, amount: float) -> float:
        """Until there is so much; `capacity` is the most there ever is."""
        missing = amount - self.level
        return missing * 60 / self.capacity if missing > _ROUNDING else 0.0


@dataclass(slots=True)
class Spending:
    tokens: int = 0  # that a generation has used in the end


class Account:
    """What one key has taken, and whether it may take more. One without a name is for all where no keys are needed."""

    def __init__(
        self, name: str | None, quota: Quota, digest: bytes | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.name = name
        self.quota = quota
        self.digest = digest  # of its key
        self._running = 0
        self._buckets = {
            kind: Bucket(limit, clock)
            for kind, limit in (("requests", quota.requests), ("tokens", quota.tokens))
            if limit is not None
        }

    def is_like(self, other: "Account") -> bool:
        return (self.name, self.quota) == (other.name, other.quota)

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's, for each limit that there is."""
        headers: dict[str, str] = {}
        for kind, bucket in self._buckets.items():
            headers[f"x-ratelimit-limit-{kind}"] = str(bucket.capacity)
            headers[f"x-ratelimit-remaining-{kind}"] = str(max(math.floor(bucket.level), 0))
            headers[f"x-ratelimit-reset-{kind}"] = duration(bucket.wait_s(bucket.capacity))
        return headers

    def request(self) -> None:
        """Counts a request, before anything is done for it. Raises RateLimited for one that is not to be taken."""
        self._check_running()
        self._take("requests", 1)

    @contextmanager
    def spending(self, tokens: int) -> Iterator[Spending]:
        """Around a generation that may come to so many tokens. Raises RateLimited for one that is not to be begun.

        What it has taken too much is given back at its end; what it has taken too little is taken then.
        """
        self._check_running()  # again: others may have begun since
        self._take("tokens", tokens)
        self._running += 1
        spending = Spending()
        try:
            yield spending
        finally:
            self._running -= 1
            if "tokens" in self._buckets:
                self._buckets["tokens"].take(spending.tokens - tokens)

    def _check_running(self) -> None:
        limit = self.quota.concurrency
        if limit is not None and self._running >= limit:
            message = f"Rate limit reached for key '{self.name}': {limit} requests at a time."
            raise RateLimited(message, retry_after_s=BUSY_RETRY_S, quota=self.headers)

    def _take(self, kind: str, amount: int) -> None:
        bucket = self._buckets.get(kind)
        if bucket is None:
            return
        limit = f"for key '{self.name}' on {kind} per minute: limit {bucket.capacity}"
        if amount > bucket.capacity:
            message = f"Request too large {limit}, requested {amount}."
            raise RateLimited(message, retry_after_s=None, quota=self.headers)
        if wait_s := bucket.wait_s(amount):
            left = max(math.floor(bucket.level), 0)
            message = f"Rate limit reached {limit}, left {left}, requested {amount}."
            message += f" Please try again in {duration(wait_s)}."
            raise RateLimited(message, retry_after_s=wait_s, quota=self.headers)
        bucket.take(amount)


def duration(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 7.66s, 120ms. Rounded up, so that who waits so long has waited long enough."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{milliseconds / 1000:g}s"
