"""What a section of the report is, and how it runs: in a process of its own, so that its end is nobody else's."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Literal

import msgspec

ROOT = Path(__file__).parents[2]
LIMIT_S = 1800.0  # of one section; on a card a kernel that never ends is among the things that may happen
LAST_WORDS = 12  # lines of a section's own report that are kept if it fails
END_S = 30.0  # that it has to end a server
NOT_RUN = 3  # the exit code of a section that found nothing to run


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is checked, and on what."""

    model: str
    device: Literal["cuda", "cpu"]
    quick: bool  # the least that still shows that everything runs
    vllm: str | None  # its program, for the comparison

    @property
    def sequences(self) -> int:
        """That run side by side."""
        return 8 if self.quick else 256


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a section."""

    verdict: Verdict
    why: str = ""  # in one line, unless it passed
    body: str = ""  # Markdown: what it found, up to where it ended
    last_words: str = ""  # what it said of its failure

    def __str__(self) -> str:
        return f"{self.verdict}: {self.why}" if self.why else self.verdict


class NotRun(Exception):
    """There is nothing of the kind on this device; the text says why."""


class Failed(Exception):
    """What was checked does not hold; the text says what."""


def run(name: str, options: Options) -> Outcome:
    return outcome_of(
        [sys.executable, "-P", "-m", "bench.gpu_check.child", name, msgspec.json.encode(options).decode()], LIMIT_S
    )


def outcome_of(command: Sequence[str], limit_s: float) -> Outcome:
    """Whatever happens in the process, an outcome comes of it."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        # a session of its own: what it starts ends with it
        process = subprocess.Popen(command, stdout=said, stderr=complained, start_new_session=True)
        try:
            process.wait(limit_s)
            is_late = False
        except subprocess.TimeoutExpired:
            is_late = True
        finally:
            _end(process)
        body, complaints = _text(said), _text(complained).splitlines()
        why = f"not finished after {limit_s:g} s" if is_late else _why(process.returncode, complaints)
    return _outcome(None if is_late else process.returncode, why, body, complaints)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It leaves no process behind, neither itself nor what it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip()


def _why(code: int, complaints: list[str]) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return complaints[-1] if complaints else f"ended with {code} and said nothing"


def _outcome(code: int | None, why: str, body: str, complaints: list[str]) -> Outcome:
    if code == 0:
        return Outcome(Verdict.PASSED, body=body)
    if code == NOT_RUN:
        return Outcome(Verdict.NOT_RUN, why, body)
    return Outcome(Verdict.FAILED, why, body, "\n".join(complaints[-LAST_WORDS:]))
