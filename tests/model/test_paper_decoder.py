"""The decoder of "Attention Is All You Need" without its encoder half, against torch's own layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import lively_paper, write_paper


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_decoder_of_the_paper_gives_the_logits_of_torchs_own_layers(
    is_tied: bool, tmp_path: Path, load: Any, agree: Any, sequences: list[list[int]]
) -> None:
    model = lively_paper(is_tied)
    write_paper(model, tmp_path)
    with torch.no_grad():
        agree(load(tmp_path), [model(torch.tensor(tokens)) for tokens in sequences])
