"""How a checkpoint's JSON files are read."""

import json
from pathlib import Path
from typing import Any

from model.checkpoints.errors import CheckpointError


def read_text(path: Path) -> str:
    """Raises CheckpointError where there is no such file, or it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"not UTF-8: {error}") from error


def parse_object(path: Path, text: str) -> dict[str, Any]:
    """Raises CheckpointError naming `path` where `text` is not a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(path, "not a JSON object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    return parse_object(path, read_text(path))


def read_optional_object(path: Path) -> dict[str, Any]:
    """An empty object where there is no such file."""
    return read_object(path) if path.exists() else {}
