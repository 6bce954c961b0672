"""What every replica has in hand: so many requests, and what it has still to read of their prompts."""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """Of one replica."""

    requests: int = 0
    unread_tokens: int = 0  # of their prompts; without what it held of them when they came

    def __add__(self, other: "Load") -> "Load":
        return Load(self.requests + other.requests, self.unread_tokens + other.unread_tokens)

    def grown(self, requests: int) -> "Load":
        """So many requests, if the others are like these."""
        return Load(requests, self.unread_tokens * requests // max(self.requests, 1))


class Loads:
    """By replica, from the sending of a request to its end. What was never sent, or has ended, changes nothing."""

    def __init__(self) -> None:
        self._of: defaultdict[str, Load] = defaultdict(Load)
        self._at: dict[Hashable, str] = {}  # by request
        self._unread_tokens: dict[Hashable, int] = {}  # by request, until it has begun

    def of(self, replica: str) -> Load:
        return self._of.get(replica, Load())

    def replica_of(self, request: Hashable) -> str | None:
        return self._at.get(request)

    def sent(self, request: Hashable, replica: str, unread_tokens: int) -> None:
        self._at[request] = replica
        self._unread_tokens[request] = unread_tokens
        self._of[replica] += Load(1, unread_tokens)

    def begun(self, request: Hashable) -> None:
        """It has its first token: its prompt is read."""
        if request in self._unread_tokens:
            self._of[self._at[request]] += Load(0, -self._unread_tokens.pop(request))

    def through(self, request: Hashable) -> None:
        """In whichever way."""
        self.begun(request)
        if request in self._at:
            self._of[self._at.pop(request)] += Load(-1)

    def keep(self, replicas: set[str]) -> None:
        """Forgets what others had, once it has ended there."""
        for replica in self._of.keys() - replicas:
            if not self._of[replica].requests:
                del self._of[replica]
