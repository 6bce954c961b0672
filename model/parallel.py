"""The ranks that compute one model together: who this one is, and how the parts that each computes become a whole."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

_PATIENCE = timedelta(days=1)  # a rank that hangs is the watchdog's to find, whose patience grows with the model


class RankLost(BaseException):
    """Another rank is gone in the midst of it, and so is this step, and this engine with it.

    No `Exception`: ranks that have parted cannot meet again, so nothing may catch it and go on.
    """


@dataclass(frozen=True, slots=True)
class Ranks:
    """One rank's place among all. On its own it has nobody to share with: what it computes is the whole."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the ranks of its machine
    local_size: int = 1

    def piece(self, count: int, step: int = 1) -> range:
        """This rank's of so many things, of which `step` at a time stay together: near-even, in order of ranks."""
        steps = -(-count // step)
        first, last = steps * self.rank // self.size, steps * (self.rank + 1) // self.size
        return range(first * step, min(last * step, count))

    def sum(self, part: Tensor) -> Tensor:
        """The sum of all ranks' parts, on every rank. An element is summed in one order, whatever stands beside it."""
        return part

    def gather(self, part: Tensor, count: int) -> Tensor:
        """All ranks' columns side by side, on every rank; each has its `piece` of so many."""
        return part

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers, on every rank."""
        return number


ALONE = Ranks()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Ranks):
    """Ranks that speak over torch.distributed: NCCL between cards, gloo between processors.

    Parts are sent whole and added up by every rank, in the order of ranks and in fp32. An all_reduce would send less,
    but a ring starts each piece of the message at another rank, and NCCL chooses ring, tree or switch by the
    message's size: a row's bits would depend on how many rows there are. All ranks call the same in the same order.
    """

    device: torch.device

    def sum(self, part: Tensor) -> Tensor:
        first, *others = (shared.float() for shared in self._all(part))
        total = first
        for other in others:
            total = total + other
        return total.to(part.dtype)

    def gather(self, part: Tensor, count: int) -> Tensor:
        widths = [len(Ranks(rank, self.size).piece(count)) for rank in range(self.size)]
        missing = max(widths) - part.shape[-1]  # all have to send equally much
        shared = self._all(torch.nn.functional.pad(part, (0, missing)) if missing else part)
        return torch.cat([columns[..., :width] for columns, width in zip(shared, widths, strict=True)], dim=-1)

    def least(self, number: int) -> int:
        return min(int(each) for each in self._all(torch.tensor([number], device=self.device)))

    def _all(self, part: Tensor) -> list[Tensor]:
        part = part.contiguous()
        shared = [torch.empty_like(part) for _ in range(self.size)]
        try:
            dist.all_gather(shared, part)
        except RuntimeError as error:
            raise RankLost(f"rank {self.rank} has lost another: {error}") from error
        return shared


class Meeting:
    """A place that all ranks know, where they find each other before they form a group."""

    def __init__(self, host: str, port: int, *, is_host: bool) -> None:
        """Hosts it, on a free port where `port` is 0, or waits until it is there. Raises OSError."""
        try:
            self._store = TCPStore(host, port, is_master=is_host, wait_for_workers=False, timeout=_PATIENCE)
        except RuntimeError as error:
            raise OSError(f"no meeting of ranks at {host}:{port}: {' '.join(str(error).split())}") from error
        self.port: int = self._store.port

    def announce(self, word: str) -> int:
        """Says a word to all who listen; how many have been said."""
        self._store.set("word", word)
        return int(self._store.add("words", 1))

    def listen(self) -> str:
        """The last word, once there is one."""
        return str(self._store.get("word").decode())

    def form(self, place: Ranks, device: torch.device, words: int) -> Group:
        """Joins the group of all ranks that have heard so many words. Returns when all have. Raises RankLost."""
        store = PrefixStore(f"group {words}", self._store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=_PATIENCE)
        except RuntimeError as error:
            raise RankLost(f"rank {place.rank} does not find the others: {error}") from error
        return Group(place.rank, place.size, place.local_rank, place.local_size, device=device)
