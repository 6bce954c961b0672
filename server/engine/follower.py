"""A rank that follows: it loads its part of the model, then computes every batch that rank 0 tells it of."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace

from model.batch import Batch
from model.loading import load
from model.parallel import Meeting, RankLost
from server.engine.followers import ranks_of
from server.engine.loop import START_ERRORS, open_for
from server.engine.messages import Failed
from server.engine.ranks import Follow, Hello, Join, Leave, Place, ToFollower, place_of, wait_for_end
from server.engine.wire import Inbox, frame

_KNOCK_EVERY_S = 0.2
_LEAVE_WITHIN_S = 2.0  # of rank 0's end
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl.h


def follow(place: Place, connection: socket.socket, meeting: Meeting) -> None:
    """Returns when rank 0 lets it go. Raises EOFError where that is gone, and START_ERRORS."""
    inbox = Inbox[ToFollower](connection, ToFollower)
    runner = None
    while True:
        for message in inbox.take(wait=True):
            match message:
                case Join(options, call):
                    model = open_for(options, _quiet, ranks_of(place))
                    model = replace(model, ranks=meeting.form(model.ranks, model.kernels.device, call))
                    runner = load(model, model.plan(), _quiet)
                case Follow(rows):
                    assert runner is not None, "told of a batch before it was told of the model"
                    runner.run(Batch([row.chunk() for row in rows]))
                case Leave():
                    return


def _quiet(stage: str, done: int, total: int) -> None:
    """Rank 0 reports, whose part is as large."""


def _knock(meeting: Meeting) -> socket.socket:
    """Connects with the engine that has called last; the one before it may be gone and its address still there."""
    while True:
        host, _, port = meeting.listen().rpartition(":")
        with contextlib.suppress(ConnectionRefusedError):
            connection = socket.create_connection((host, int(port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        time.sleep(_KNOCK_EVERY_S)


def _die_with_parent() -> None:
    """Also where this process is stopped, and can do nothing itself. Elsewhere than on Linux it finds out by itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _leave_with(connection: socket.socket) -> None:
    """Ends this process when rank 0 is gone: in the midst of a step it might wait for it for ever."""
    wait_for_end(connection)
    time.sleep(_LEAVE_WITHIN_S)  # mostly the main thread finds out first
    os._exit(1)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 decides
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    place = place_of(int(os.environ["WORLD_SIZE"]))
    try:
        meeting = Meeting(place.master_addr, place.master_port, is_host=False)
        connection = _knock(meeting)
    except (OSError, RuntimeError) as error:
        print(f"headrace: rank {place.rank} finds no rank 0: {error}", file=sys.stderr)
        return 1
    connection.sendall(frame(Hello(place.rank)))
    threading.Thread(target=_leave_with, args=[connection], daemon=True).start()
    try:
        follow(place, connection, meeting)
    except START_ERRORS as error:
        connection.sendall(frame(Failed(f"rank {place.rank}: {' '.join(str(error).split())}")))
        return 1
    except (EOFError, RankLost):
        os._exit(1)  # at once: what torch would end in order waits for the one that is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
