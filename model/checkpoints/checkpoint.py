"""What kind of checkpoint lies at a path."""

from pathlib import Path

from model.checkpoints.contents import Checkpoint
from model.checkpoints.errors import CheckpointError
from model.checkpoints.gguf_file import GGUFFile
from model.checkpoints.safetensors_file import INDEX, WHOLE, SafetensorsFolder


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a folder, a GGUF file or a safetensors file: reads and checks headers, and no weight.

    Raises CheckpointError, one line that names the file and the reason.
    """
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from error


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        return SafetensorsFolder.open(path)
    with path.open("rb") as file:
        magic = file.read(4)
    if path.suffix == ".gguf" or magic == b"GGUF":
        return GGUFFile.open(path)
    raise CheckpointError(path, "neither a GGUF nor a safetensors file")


def _open_folder(path: Path) -> Checkpoint:
    if (path / WHOLE).exists() or (path / INDEX).exists():
        return SafetensorsFolder.open(path)
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(path, f"holds several GGUF files, name one: {', '.join(file.name for file in files)}")
    if not files:
        pickled = "; pickled weights (*.bin) are not read" if any(path.glob("*.bin")) else ""
        raise CheckpointError(path, f"holds neither {WHOLE}, nor {INDEX}, nor a GGUF file{pickled}")
    return GGUFFile.open(files[0])
