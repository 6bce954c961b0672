"""Files to named tensors: where a model is, what its files hold, and how its tokenizer is written."""

from model.checkpoints.checkpoint import open_checkpoint
from model.checkpoints.contents import Checkpoint, TensorInfo, TokenizerCard
from model.checkpoints.errors import CheckpointError
from model.checkpoints.sources import DEFAULT_MODEL, locate

__all__ = [
    "DEFAULT_MODEL",
    "Checkpoint",
    "CheckpointError",
    "TensorInfo",
    "TokenizerCard",
    "locate",
    "open_checkpoint",
]
