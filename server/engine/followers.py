"""An engine's other ranks, as rank 0 sees them: started or awaited, told of every batch, missed at once."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import msgspec

from model.batch import Batch
from model.loading import OpenModel
from model.parallel import Meeting, Ranks
from server.config import EngineOptions
from server.engine.messages import Failed
from server.engine.ranks import (
    FOLLOWER,
    LOCALHOST,
    Follow,
    Hello,
    Join,
    Leave,
    Place,
    Rows,
    ToFollower,
    place_of,
)
from server.engine.wire import Inbox, frame

_LOOK_EVERY_S = 0.5
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


class Followers:
    """None where one rank is all. Those on this machine are started here, but for what torchrun has started."""

    def __init__(self, options: EngineOptions) -> None:
        """Raises OptionError where their places make no sense."""
        self._options = options
        self._place = place_of(options.tensor_parallel)
        self._connections: dict[int, socket.socket] = {}  # by rank
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_over = False

    @property
    def ranks(self) -> Ranks:
        """This rank among them, before they have met."""
        return ranks_of(self._place)

    def gather(self, model: OpenModel, on_failure: Callable[[str], None]) -> OpenModel:
        """The model as it is computed together. Waits for all; from then on, this process ends when one of them does.

        `on_failure` is told why, where that is known. Raises ValueError where one has ended before, or would have no
        part of the model.
        """
        if self._place.world_size == 1:
            return model
        for rank in range(self._place.world_size):
            replace(model, ranks=replace(self.ranks, rank=rank)).share()
        self._meet()
        while len(self._connections) < self._place.world_size - 1:
            self._accept()
        self._listening.close()
        self._tell(Join(self._options, self._call))
        for rank, connection in self._connections.items():
            threading.Thread(target=self._miss, args=[rank, connection, on_failure], daemon=True).start()
        return replace(model, ranks=self._meeting.form(self.ranks, model.kernels.device, self._call))

    def tell(self, batch: Batch) -> None:
        """To be said before the batch is computed here."""
        if self._connections:
            self._tell(Follow([Rows.of(chunk) for chunk in batch.chunks]))

    def leave(self) -> None:
        """Lets them go."""
        self._is_over = True
        self._tell(Leave())

    def __len__(self) -> int:
        return len(self._connections)

    def _meet(self) -> None:
        place = self._place
        is_here = place.master_port == 0
        self._meeting = Meeting(place.master_addr, place.master_port, is_host=not place.has_store)
        self._listening = socket.create_server((LOCALHOST if is_here else "", 0))
        self._listening.settimeout(_LOOK_EVERY_S)
        self._call = self._meeting.announce(f"{place.master_addr}:{self._listening.getsockname()[1]}")
        if is_here:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
            for rank in range(1, place.world_size):
                there = msgspec.structs.replace(place, rank=rank, local_rank=rank, master_port=self._meeting.port)
                self._processes.append(_start(there))

    def _accept(self) -> None:
        if any(process.poll() is not None for process in self._processes):
            raise ValueError("tensor-parallel: a rank has ended before it was ready")
        try:
            connection, _ = self._listening.accept()
        except TimeoutError:
            return
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        (hello,) = Inbox[Hello](connection, Hello).take(wait=True)
        self._connections[hello.rank] = connection

    def _tell(self, message: ToFollower) -> None:
        data = frame(message)
        for connection in self._connections.values():
            connection.sendall(data)

    def _miss(self, rank: int, connection: socket.socket, on_failure: Callable[[str], None]) -> None:
        """In a thread of its own, for this rank may wait for that one in the midst of a step, and for ever."""
        inbox = Inbox[Failed](connection, Failed)
        with contextlib.suppress(EOFError, OSError):
            for failed in inbox.take(wait=True):
                on_failure(failed.reason)
        if not self._is_over:
            print(f"headrace: rank {rank} is gone, and the engine with it", file=sys.stderr)
            os._exit(1)


def ranks_of(place: Place) -> Ranks:
    return Ranks(place.rank, place.world_size, place.local_rank, place.local_world_size)


def _start(place: Place) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(FOLLOWER, env=os.environ | place.variables(), stdin=subprocess.DEVNULL)
