"""How a model's files are fetched from the Hugging Face hub."""

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors
from tqdm import tqdm

from model.checkpoints.errors import CheckpointError
from model.checkpoints.packages import Report

TEXTS = ["*.json", "*.jinja"]
SAFETENSORS = ["model*.safetensors", *TEXTS]  # not consolidated.safetensors: the same weights once more
SUBFOLDERS = ["*/*"]  # other formats and other models


def fetch(name: str, report: Report, endpoint: str | None = None) -> Path:
    """The snapshot of `org/name[@revision]` in the hub's own cache: safetensors, or else the one GGUF file.

    Offline mode (HF_HUB_OFFLINE) takes what is cached. `endpoint` is another hub than HF_ENDPOINT or the public one.
    Raises CheckpointError.
    """
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise CheckpointError(f"hf:{name}", "not of the form hf:org/name or hf:org/name@revision")
    try:
        return _Fetch(huggingface_hub.HfApi(endpoint), repository, revision or None, report).run()
    except (OSError, ValueError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # of the hub's HTTP library
        raise CheckpointError(f"hf:{name}", _reason(error)) from error


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One repository at one revision; None is its main branch."""

    hub: huggingface_hub.HfApi
    repository: str
    revision: str | None
    report: Report

    def run(self) -> Path:
        folder = self._snapshot(SAFETENSORS)
        if any(folder.glob("*.safetensors")):
            return folder
        return self._snapshot([self._gguf(), *TEXTS])

    def _snapshot(self, patterns: list[str]) -> Path:
        return Path(
            self.hub.snapshot_download(
                self.repository,
                revision=self.revision,
                allow_patterns=patterns,
                ignore_patterns=SUBFOLDERS,
                tqdm_class=_bars(f"downloading {self.repository}", self.report),
            )
        )

    def _gguf(self) -> str:
        """The repository's GGUF file; offline, whichever is cached."""
        try:
            files = self.hub.list_repo_files(self.repository, revision=self.revision)
        except errors.OfflineModeIsEnabled:
            return "*.gguf"
        found = sorted(file for file in files if file.endswith(".gguf") and "/" not in file)
        if not found:
            raise self._refusal("the repository holds neither model*.safetensors nor a GGUF file")
        if len(found) > 1:
            raise self._refusal(f"holds several GGUF files; fetch one and name it: {', '.join(found)}")
        return found[0]

    def _refusal(self, reason: str) -> CheckpointError:
        return CheckpointError(f"hf:{self.repository}", reason)


def _bars(stage: str, report: Report) -> type[Any]:
    """A class of progress bars, as the hub wants it, that draw nothing and report bytes."""
    lock = threading.Lock()
    furthest = 0

    class Bar(tqdm):  # type: ignore[misc]  # tqdm is not typed
        def __init__(self, *args: Any, **options: Any) -> None:
            self.counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            with lock:  # files arrive on several threads, and some on two bars: received and written
                self.n += n or 0
                if self.counts_bytes and self.n > furthest:
                    furthest = int(self.n)
                    report(stage, furthest, max(furthest, int(self.total or 0)))

    return Bar


def _reason(error: Exception) -> str:
    if isinstance(error, errors.GatedRepoError):
        return "access is gated: accept the conditions on its page and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or it is private and HF_TOKEN does not open it"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"not in the cache, and the hub cannot be asked ({str(error).splitlines()[0]})"
    return str(error)
