"""A model argument that is a path stays that path."""

from pathlib import Path

import pytest

from model.checkpoints import CheckpointError, locate


def silent(stage: str, done: int, total: int) -> None: ...


def test_a_local_path_is_itself_and_a_missing_one_is_one_line(tmp_path: Path) -> None:
    assert locate(str(tmp_path), silent) == tmp_path
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/absent: no such file or folder; hf:org/name and"):
        locate(f"{tmp_path}/absent", silent)
