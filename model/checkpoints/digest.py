"""Which weights a checkpoint holds, told by a sample of them: reading all would delay the start."""

import hashlib

import torch

from model.checkpoints.contents import Checkpoint
from model.quantization import PackedMatrix

PIECE_BYTES = 4096  # a page, which is what the disk gives anyway


def sample_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 over every tensor's name, shape, format and its first, middle and last bytes.

    It tells models, revisions, fine-tunings and quantisations apart. It does not notice a change between the samples,
    so it proves nothing against damage or malice.
    """
    digest = hashlib.sha256()
    for info, (_, tensor) in zip(checkpoint.infos, checkpoint.tensors(), strict=True):
        digest.update(repr((info.name, info.shape, info.dtype)).encode())
        for part in tensor.parts if isinstance(tensor, PackedMatrix) else (tensor,):
            content = part.view(-1).view(torch.uint8).numpy()
            for start in (0, len(content) // 2, max(len(content) - PIECE_BYTES, 0)):
                digest.update(content[start : start + PIECE_BYTES].tobytes())
    return digest.hexdigest()
