"""What rank 0 of an engine and the ranks that follow it say to each other, and where each learns its place."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

import msgspec

from model.batch import GREEDY, Chunk, Reading, Sampling
from server.config import EngineOptions, OptionError

FOLLOWER = (sys.executable, "-P", "-m", "server.engine.follower")
LOCALHOST = "127.0.0.1"

_NEXT_AFTER_S = 0.5
_GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)  # Linux tells of a peer that has closed


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A rank as torchrun tells it, in the environment."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = LOCALHOST
    master_port: int = 0
    torchelastic_use_agent_store: str = "False"

    @property
    def has_store(self) -> bool:
        """torchrun itself is where the ranks meet; else rank 0 is."""
        return self.torchelastic_use_agent_store == "True"

    def variables(self) -> dict[str, str]:
        return {name.upper(): str(value) for name, value in msgspec.structs.asdict(self).items()}


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A follower's first word."""

    rank: int


class Join(msgspec.Struct, frozen=True, tag=True):
    """What to load; `call` tells this engine's ranks from an earlier one's."""

    options: EngineOptions
    call: int


class Rows(msgspec.Struct, frozen=True, array_like=True):
    """What has to be known of a chunk to compute it. What is chosen, rank 0 alone decides."""

    tokens: list[int]  # from `start` on, one after `stop` included
    start: int
    stop: int
    blocks: list[int]
    prompt_length: int
    chooses: bool
    drafts: tuple[int, ...]
    reading: Reading | None

    @classmethod
    def of(cls, chunk: Chunk) -> "Rows":
        tokens = chunk.tokens[chunk.start : chunk.stop + 1]
        chooses = chunk.sampling is not None
        place = (chunk.start, chunk.stop, chunk.blocks, chunk.prompt_length)
        return cls(tokens, *place, chooses, chunk.drafts, chunk.reading)

    def chunk(self) -> Chunk:
        """With no token before `start`, which nothing that is computed asks for, and with the cheapest choice."""
        tokens = [0] * self.start + self.tokens
        sampling = Sampling(temperature=GREEDY) if self.chooses else None
        place = (self.start, self.stop, self.blocks, self.prompt_length)
        return Chunk(tokens, *place, sampling, self.drafts, reading=self.reading)


class Follow(msgspec.Struct, frozen=True, tag=True):
    """Compute this batch, now."""

    rows: list[Rows]


class Leave(msgspec.Struct, frozen=True, tag=True):
    """It is over, and nobody is needed any more."""


ToFollower = Join | Follow | Leave


def place_of(size: int, environment: Mapping[str, str] = os.environ) -> Place:
    """Where torchrun, or whoever sets its variables, has started this process; rank 0 of its own machine else.

    Raises OptionError.
    """
    if size == 1 or "WORLD_SIZE" not in environment:
        return Place(world_size=size, local_world_size=size)
    given = {name: environment[name.upper()] for name in Place.__struct_fields__ if name.upper() in environment}
    try:
        place = msgspec.convert(given, Place, strict=False)
    except msgspec.ValidationError as error:
        raise OptionError(f"--tensor-parallel: the environment's ranks make no sense: {error}") from None
    if place.world_size != size:
        raise OptionError(f"--tensor-parallel: {size} ranks were asked for, and WORLD_SIZE is {place.world_size}")
    return place


def follow() -> int:
    """Has a process follow rank 0's engine, and another one the next, until one is let go; the exit code.

    SIGTERM reaches all ranks of a job at once, and rank 0 has requests to finish, so it is left to that one.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while subprocess.run(FOLLOWER, stdin=subprocess.DEVNULL, check=False).returncode != 0:
        time.sleep(_NEXT_AFTER_S)
    return 0


def wait_for_end(connection: socket.socket) -> None:
    """Returns when the other side is gone, whatever it has said before."""
    hang_up = select.poll()
    hang_up.register(connection, _GONE)
    hang_up.poll()
