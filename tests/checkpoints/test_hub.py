"""A repository of the hub is fetched into the hub's own cache, without what is not read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from model.checkpoints import CheckpointError, hub, locate

Serve = Callable[[Callable[[Any], None]], str]
Report = Callable[[str, int, int], None]
Fetch = Callable[[dict[str, bytes], str, Report], Path]


def silent(stage: str, done: int, total: int) -> None: ...


COMMIT = "c0ffee" * 6 + "c0ff"


@pytest.fixture
def fetch(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Fetches from a hub that has one repository, org/tiny, with these files, through one cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def run(files: dict[str, bytes], name: str, report: Report) -> Path:
        def answer(request: Any) -> None:
            path = request.path.partition("?")[0]
            if path == "/api/models/org/tiny/revision/main":
                return request.reply(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": []}).encode())
            if path in (f"/api/models/org/tiny/tree/{COMMIT}", "/api/models/org/tiny/tree/main"):
                tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": name} for name in files]
                return request.reply(json.dumps(tree).encode())
            name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
            if name in files:
                return request.reply(files[name], ETag=f'"{name}"', X_Repo_Commit=COMMIT)
            code = "RevisionNotFound" if path.startswith("/api/models/org/tiny/") else "RepoNotFound"
            return request.reply(b"{}", 404, X_Error_Code=code)

        return hub.fetch(name, report, endpoint=serve(answer))

    return run


def test_a_repository_is_fetched_without_what_is_not_read(fetch: Fetch) -> None:
    files = {"config.json": b"{}", "model.safetensors": bytes(300_000), "chat_template.jinja": b"x"}
    unread = dict.fromkeys(["pytorch_model.bin", "code.py", "consolidated.safetensors", "onnx/model.safetensors"], b"-")
    reports: list[tuple[str, int, int]] = []
    folder = fetch(files | unread | {"tiny.gguf": b"-"}, "org/tiny", lambda *report: reports.append(report))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    total = sum(len(data) for data in files.values())
    assert reports[-1] == ("downloading org/tiny", total, total)


def test_a_repository_without_safetensors_gives_its_gguf_file(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"README.md": b"#", "tiny.gguf": b"GGUF"}
    folder = fetch(files, "org/tiny@main", silent)
    assert [path.name for path in folder.iterdir()] == ["tiny.gguf"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch({}, "org/tiny", silent) == folder


@pytest.mark.parametrize(
    ("name", "files", "reason"),
    [
        ("org/tiny", ["a.gguf", "b.gguf"], "holds several GGUF files; fetch one and name it: a.gguf, b.gguf"),
        ("org/tiny", ["x.bin"], "the repository holds neither model*.safetensors nor a GGUF file"),
        ("org/absent", [], "no such repository, or it is private and HF_TOKEN does not open it"),
        ("org/tiny@v9", [], "no such revision"),
        ("tiny", [], "not of the form hf:org/name or hf:org/name@revision"),
        ("../../etc", [], "not of the form hf:org/name or hf:org/name@revision"),
    ],
    ids=str,
)
def test_a_repository_that_cannot_be_had_is_one_line(name: str, files: list[str], reason: str, fetch: Fetch) -> None:
    with pytest.raises(CheckpointError) as refusal:
        fetch(dict.fromkeys(files, b"GGUF"), name, silent)
    assert str(refusal.value) == f"hf:{name}: {reason}"


def test_offline_a_repository_that_is_not_cached_is_one_line(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"^hf:org/tiny: not in the cache, and the hub cannot be asked \(.*\)$"):
        fetch({}, "org/tiny", silent)
    with pytest.raises(CheckpointError, match=r"^hf:org/tiny: not in the cache"):
        locate("hf:org/tiny", silent)
