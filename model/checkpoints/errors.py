"""How a checkpoint is refused."""

from pathlib import Path


class CheckpointError(Exception):
    """A model that cannot be found or read. The message is one line that names the file and the reason."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(" ".join(f"{path}: {reason}".split()))
        self.path = path
        self.reason = reason
