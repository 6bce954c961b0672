"""Which replica takes a request: where its first token costs the least.

It costs what the replica lacks of the prompt, what it has still to read of those before it, and a little for each
request that it has in hand. A replica that has had a prompt is taken to hold its KV blocks, the most recent ones of as
many as it has. Nothing is asked and nothing is sure: a wrong guess costs time, never a token.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from server.scale_out.loads import Load

BLOCK_TOKENS = 16  # as the KV cache is cut
# A token that it lacks counts as so many that it has to read anyway: those delay this request, that one others too.
LACKING_WEIGHT = 2
# Beside what is unread of its prompt, a request in hand counts as so many tokens: the rows of steps that it takes.
CROWD_TOKENS = 128
REMEMBERED_BLOCKS = 2**16  # of each replica, where it is not said how many it has

Why = Literal["prefix", "load", "new"]  # nobody has more of the prompt; somebody busier has; nobody has any of it
WHYS: tuple[Why, ...] = ("prefix", "load", "new")


@dataclass(frozen=True, slots=True)
class Ranking:
    """The replicas for a request, the best first."""

    replicas: list[str]
    why: Why  # the first is the first
    held_tokens: int  # of the prompt, by the first


def prefix_keys(prompt: Sequence[int], root: Hashable = None) -> list[int]:
    """A key for each full block of the prompt, which stands for all tokens up to its end.

    Prompts of different roots (adapters, salts) share none. Keys mean something in this process only.
    """
    keys: list[int] = []
    key = hash(root)
    for end in range(BLOCK_TOKENS, len(prompt) + 1, BLOCK_TOKENS):
        key = hash((key, *prompt[end - BLOCK_TOKENS : end]))
        keys.append(key)
    return keys


class PrefixRouting:
    """Remembers who has had which prompts. Plain arithmetic: no clock, no chance."""

    def __init__(self, *, crowd_tokens: int = CROWD_TOKENS, remembered_blocks: int = REMEMBERED_BLOCKS) -> None:
        self._crowd_tokens = crowd_tokens
        self._remembered_blocks = remembered_blocks
        self._held: dict[str, OrderedDict[int, None]] = {}  # by replica, the most recent last
        self._sent: dict[str, int] = {}  # requests, by replica

    def rank(self, keys: list[int], loads: Mapping[str, Load]) -> Ranking:
        """`loads` names the replicas to choose from: at least one."""
        held = {replica: self._held_blocks(keys, replica) for replica in loads}

        def cost(replica: str) -> tuple[int, int, int]:
            load = loads[replica]
            lacking = (len(keys) - held[replica]) * BLOCK_TOKENS
            waiting = load.unread_tokens + load.requests * self._crowd_tokens
            return LACKING_WEIGHT * lacking + waiting, load.requests, self._sent.get(replica, 0)  # of equals, in turn

        ranked = sorted(loads, key=cost)
        first, most = held[ranked[0]], max(held.values())
        why: Why = "new" if most == 0 else "prefix" if first == most else "load"
        return Ranking(ranked, why, first * BLOCK_TOKENS)

    def sent(self, keys: list[int], replica: str) -> int:
        """The replica has got the request, and will hold its prompt. Returns how many of its tokens it lacked."""
        lacking = (len(keys) - self._held_blocks(keys, replica)) * BLOCK_TOKENS
        self._sent[replica] = self._sent.get(replica, 0) + 1
        held = self._held.setdefault(replica, OrderedDict())
        for key in reversed(keys):  # the tail is forgotten before what it hangs from
            held[key] = None
            held.move_to_end(key)
        while len(held) > self._remembered_blocks:
            held.popitem(last=False)
        return lacking

    def keep(self, replicas: set[str]) -> None:
        """Forgets all others: they are gone, and what they held with them."""
        for replica in self._sent.keys() - replicas:
            del self._sent[replica]
            del self._held[replica]

    def _held_blocks(self, keys: list[int], replica: str) -> int:
        """How many of the leading blocks."""
        held = self._held.get(replica, OrderedDict())
        return next((place for place, key in enumerate(keys) if key not in held), len(keys))
