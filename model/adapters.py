"""Low-rank adapters (Hu et al. 2021): from an adapter's files to what it adds to each projection of a model."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.adapter_folder import AdapterFolder, read_adapter_folder
from model.checkpoints.errors import CheckpointError
from model.families.adapter_names import parts_of
from model.linear import Linear, LowRank
from model.memory import free_memory
from model.transformer import Transformer

Updates = Mapping[str, tuple[Tensor, Tensor]]  # by part of a projection: A [r, in] and scaled B [rows, r]


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a sequence can be computed with beside the model's own weights."""

    digest: str  # of all that it adds, so equal digests are equal adapters
    updates: dict[str, LowRank]  # by the projection's name


def read_adapter(path: Path, transformer: Transformer) -> Adapter:
    """Reads a folder that PEFT has saved, for this model. Raises CheckpointError in one line.

    It takes as long as reading and repacking the weights does, and touches nothing that a step uses.
    """
    if transformer.ranks.size > 1:
        raise CheckpointError(path, "adapters are not shared among ranks: they need tensor-parallel 1")
    folder = read_adapter_folder(path)
    try:
        updates = _by_part(folder, transformer)
        _check_room(updates, transformer)
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error
    merged = {linear.name: _merged(linear, updates) for linear in transformer.projections()}
    return Adapter(_digest(updates), {name: update for name, update in merged.items() if update is not None})


def _by_part(folder: AdapterFolder, transformer: Transformer) -> Updates:
    homes = {part: linear for linear in transformer.projections() for part in linear.parts}
    updates = {}
    for module, (down, up) in folder.modules.items():
        parts = parts_of(module)
        if not parts or not all(part in homes for part in parts):
            raise ValueError(f"this model has no module {module} that an adapter can add to")
        rows = [homes[part].parts[part] for part in parts]
        shapes = tuple(up.shape[:1]), tuple(down.shape[1:])
        if shapes != ((sum(rows),), (homes[parts[0]].in_features,)):
            wanted = f"{homes[parts[0]].in_features} to {sum(rows)}"
            found = f"{down.shape[1]} to {up.shape[0]}"
            raise ValueError(f"module {module} goes from {found} numbers, the model's from {wanted}")
        for part, part_up in zip(parts, torch.split(up * folder.scale, rows), strict=True):
            updates[part] = (down, part_up)
    return updates


def _check_room(updates: Updates, transformer: Transformer) -> None:
    kernels = transformer.kernels
    size = sum(kernels.prepared_bytes(tuple(matrix.shape), "F32") for pair in updates.values() for matrix in pair)
    free = free_memory(kernels.device)
    if size > free // 2:  # what is read lies beside what is made of it for a while
        raise ValueError(f"it takes {size:,} bytes, and {free:,} are free")


def _merged(linear: Linear, updates: Updates) -> LowRank | None:
    """The parts' matrices as one pair: A below A, and each B where its part's rows meet its own rank."""
    pairs = {part: updates[part] for part in linear.parts if part in updates}
    if not pairs:
        return None
    down = torch.cat([down for down, _ in pairs.values()])
    up = torch.zeros(sum(linear.parts.values()), len(down))
    row = column = 0
    for part, rows in linear.parts.items():
        if part in pairs:
            part_up = pairs[part][1]
            up[row : row + rows, column : column + part_up.shape[1]] = part_up
            column += part_up.shape[1]
        row += rows
    return LowRank(linear.kernels.prepare(down), linear.kernels.prepare(up))


def _digest(updates: Updates) -> str:
    """SHA-256 over every part's name and numbers, all of them."""
    digest = hashlib.sha256()
    for part, pair in sorted(updates.items()):
        for matrix in pair:
            digest.update(repr((part, tuple(matrix.shape))).encode())
            digest.update(matrix.contiguous().numpy().tobytes())
    return digest.hexdigest()
