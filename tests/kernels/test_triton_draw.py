"""Whether the fused draw of the Triton kernels chooses the tokens that `model/kernels/drawing.py` specifies."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from model.kernels import Kernels
from model.kernels.drawing import Draw, Draws
from model.kernels.triton import TritonKernels
from model.kernels.triton.drawing import BLOCK

GREEDY = Draw(0.0)
HOW = [
    Draw(1.0),
    Draw(0.3),
    Draw(1e-300),
    Draw(1.0, top_k=1),
    Draw(2.0, top_k=40),
    Draw(1.0, top_p=0.0),
    Draw(1.0, top_p=0.9),
    Draw(1.5, top_p=0.3),
    Draw(1.0, min_p=0.05),
    Draw(1.2, top_k=30, top_p=0.8, min_p=0.01),
    Draw(1.0, top_k=5000, top_p=0.9999),
]


def rows_of(width: int) -> dict[str, Tensor]:
    """Ties, zeros of both signs, peaks and plains."""
    random = torch.randn(width)
    return {
        "random": 3 * random,
        "flat": torch.zeros(width),
        "peaked": 40 * random,
        "many ties": torch.round(random),
        "zeros": torch.where(random > 0, 0.0, -0.0),
        "steps": (torch.arange(width) // 7).float() / -3,
    }


def assert_same(cases: list[tuple[Tensor, Draw]], device: torch.device, allowed: Tensor | None = None) -> list[int]:
    """Each case with a seed and a position of its own, negative and large ones among them."""
    fast, plain = TritonKernels(device, torch.float32), Kernels(device, torch.float32)
    logits = torch.stack([row for row, _ in cases])
    rows = [replace(how, seed=i * (-1) ** i, position=1 + i * 2**30) for i, (_, how) in enumerate(cases)]
    draws = Draws.of(rows, device)
    chosen = fast.draw(logits, draws, allowed).tolist()
    assert chosen == plain.draw(logits, draws, allowed).tolist()
    assert chosen[0] == fast.draw_one(logits[0], rows[0], None if allowed is None else allowed[0])
    return chosen


def test_draws_are_those_of_the_reference(device: torch.device) -> None:
    assert_same(list(product(rows_of(BLOCK * 2 + 100).values(), HOW)), device)


@pytest.mark.parametrize("width", [1, BLOCK - 1, BLOCK])
def test_draws_of_other_widths(device: torch.device, width: int) -> None:
    assert_same([(rows_of(width)["many ties"], how) for how in HOW], device)


def test_only_what_is_allowed_is_chosen(device: torch.device) -> None:
    """With truncation counted among the allowed; where none is, or a logit is not finite, no token is."""
    cases = [(rows_of(700)["many ties"], how) for how in (*HOW, GREEDY, GREEDY, Draw(1.0), Draw(1.0))]
    cases[-1][0][5] = float("nan")
    allowed = torch.rand(len(cases), 700) < 0.02
    allowed[-3:-1] = False
    chosen = assert_same(cases, device, allowed)
    assert all(allowed[row, token] for row, token in enumerate(chosen[:-3]))
    assert chosen[-3:] == [-1, -1, -1]


def test_greedy_rows_among_others_take_the_likeliest(device: torch.device) -> None:
    rows = rows_of(600)
    chosen = assert_same([(row, how) for row in rows.values() for how in (GREEDY, Draw(1.0))], device)
    assert chosen[::2] == [int(row.argmax()) for row in rows.values()]
