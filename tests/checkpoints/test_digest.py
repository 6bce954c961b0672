"""A sample of the weights tells models apart, and says no more than it does."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support import write_tiny_model

from model.checkpoints.checkpoint import open_checkpoint
from model.checkpoints.digest import PIECE_BYTES, sample_digest

NAME = "model.embed_tokens.weight"


def digest(folder: Path) -> str:
    return sample_digest(open_checkpoint(folder))


def change(folder: Path, place: int) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME].view(-1)[place] += 1
    save_file(tensors, folder / "model.safetensors")


def test_equal_weights_have_equal_digests_and_others_have_not(tmp_path: Path) -> None:
    first, copy, other = (write_tiny_model(tmp_path / str(place), seed=place // 2) for place in range(3))
    assert digest(first) == digest(copy) != digest(other)


def test_each_tensors_beginning_middle_and_end_count_and_what_lies_between_does_not(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    size = load_file(folder / "model.safetensors")[NAME].numel()
    before = digest(folder)
    for place in (0, size // 2, size - 1):
        change(folder, place)
        assert digest(folder) != before
        before = digest(folder)
    change(folder, PIECE_BYTES // 4)
    assert digest(folder) == before


def test_names_shapes_and_formats_count(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    digests = {digest(folder)}
    tensors = load_file(folder / "model.safetensors")
    for other in (tensors[NAME].view(-1, 7), tensors[NAME].view(torch.bfloat16)[:, :64].contiguous()):
        save_file(tensors | {NAME: other}, folder / "model.safetensors")
        digests.add(digest(folder))
    assert len(digests) == 3


def test_packed_weights_have_a_digest(default_model: Path) -> None:
    assert len(digest(default_model)) == 64
