"""One engine process as its parent sees it: started, spoken to, listened to, ended."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from server.config import EngineOptions
from server.engine.messages import STACKS_SIGNAL, FromEngine, ToEngine
from server.engine.wire import frame, read_frame

# -P keeps the working directory off the import path: a user's own model.py must not shadow ours.
ENGINE = (sys.executable, "-P", "-m", "server.engine.loop")

_LEAVE_WITHIN_S = 5.0


class Child:
    """An engine that has been started. It does nothing until it is sent its options."""

    def __init__(self, command: Sequence[str] = ENGINE) -> None:
        """Starts the command with the number of its socket as the last argument; needs no event loop."""
        self._writer: asyncio.StreamWriter | None = None
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the terminal's whole group, and it is ours to decide
            )

    async def connect(self) -> None:
        """To be awaited once, before anything is said or heard."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def is_stopped(self) -> bool:
        """By SIGSTOP or a debugger, as far as the system tells: such a process cannot dump its stacks."""
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{self.pid}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] in ("T", "t")
        return False

    def send(self, message: ToEngine | EngineOptions) -> None:
        assert self._writer is not None, "not connected"
        self._writer.write(frame(message))

    async def messages(self) -> AsyncIterator[FromEngine]:
        """Everything it says, until its end of the socket is closed or what it says makes no sense."""
        decoder = msgspec.msgpack.Decoder[FromEngine](FromEngine)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, msgspec.MsgspecError):
            while True:
                yield decoder.decode(await read_frame(self._reader))

    def dump_stacks(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(STACKS_SIGNAL)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> str:
        """Closes the connection, upon which the engine leaves, and waits, but not for ever; how it ended, in words."""
        (self._writer or self._socket).close()
        waiting = asyncio.create_task(asyncio.to_thread(self._process.wait))
        await asyncio.wait([waiting], timeout=_LEAVE_WITHIN_S)
        if not waiting.done():
            self.kill()
        status = await waiting
        return f"by {signal.Signals(-status).name}" if status < 0 else f"with exit code {status}"
