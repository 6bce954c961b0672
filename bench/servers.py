"""How a server of a comparison lives: started on a free port, waited for, weighed, and ended by its process id."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

START_TIMEOUT_S, STOP_TIMEOUT_S = 300.0, 20.0
WEIGHED_EVERY_S = 1.0  # reading takes the kernel milliseconds, which the server then lacks


class NoStart(Exception):
    """A server ended, or never said that it was ready; the text has its last words."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a server; `--host` and `--port` are put behind."""

    arguments: tuple[str, ...]
    health: str  # path that answers 200 once the model is loaded
    start_s: float = START_TIMEOUT_S  # until then


@dataclass(frozen=True, slots=True)
class Server:
    process: subprocess.Popen[bytes]
    url: str


@contextmanager
def running(command: Command, log: Path) -> Iterator[Server]:
    """A server that is ready, for as long as the context lasts. Raises NoStart."""
    with starting(command, log) as server:
        wait(server, command.health, log, timeout_s=command.start_s)
        yield server


@contextmanager
def starting(command: Command, log: Path) -> Iterator[Server]:
    """A server on its way, ended with the context."""
    port = _free_port()
    arguments = [*command.arguments, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        # a session of its own: Ctrl-C is ours to pass on
        process = subprocess.Popen(arguments, stdout=output, stderr=output, start_new_session=True)
    try:
        yield Server(process, f"http://127.0.0.1:{port}")
    finally:
        _end(process)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait(
    server: Server, path: str, log: Path, statuses: Set[int] = frozenset({200}), timeout_s: float = START_TIMEOUT_S
) -> None:
    """Returns once `path` answers with one of the statuses. Raises NoStart."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and server.process.poll() is None:
        if _status(server.url + path) in statuses:
            return
        time.sleep(0.02)
    code = server.process.poll()
    last_words = log.read_text(errors="replace").strip().splitlines()[-1:] or ["(said nothing)"]
    how = "was not ready in time" if code is None else f"ended with {code}"
    raise NoStart(f"the server {how}: {last_words[0]} ({log})")


def _status(url: str) -> int | None:
    """None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} does not leave, and is killed", file=sys.stderr)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it started, if it left any of it behind
    process.wait()


def tree(pid: int) -> list[int]:
    """A process and all below it that are there now."""
    children: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [pid, *(below for child in children for below in tree(child))]


def processes(pid: int, words: str) -> list[int]:
    """Those of a process' tree whose command line has these words."""
    found: list[int] = []
    for process in tree(pid):
        with suppress(OSError):
            if words in Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode():
                found.append(process)
    return found


def memory_mb(pid: int) -> float:
    """What a process and all below it take: each page counted in the share of it that is theirs (PSS)."""
    kilobytes = 0
    for process in tree(pid):
        with suppress(OSError):
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            kilobytes += proportional_kb(rollup)
    return kilobytes * 1024 / 1e6


def proportional_kb(rollup: str) -> int:
    """The `Pss:` of a smaps_rollup; 0 for a process that has just left its memory."""
    return next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)


class Scales:
    """Weighs a server now and then while the context lasts, and keeps the most."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak_mb = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._weigh)

    def __enter__(self) -> "Scales":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _weigh(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, memory_mb(self.pid))
            if self._is_over.wait(WEIGHED_EVERY_S):
                return
