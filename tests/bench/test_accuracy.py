"""The accuracy figures follow from their definitions, and the windows from the text."""

import math
from pathlib import Path

import pytest
import torch
from support import write_tiny_model

from bench.accuracy.table import DEFAULT, FAST, PEER, REFERENCE, Judged, table, verdicts
from bench.accuracy.tally import Prediction, Tally
from bench.accuracy.text import WINDOW, Text


def logits(*rows: list[float]) -> Prediction:
    return Prediction.of(torch.tensor(rows).log() + 3)  # unnormalised, as a model gives them


def test_perplexity_divergence_and_agreement_are_what_their_formulas_say() -> None:
    reference = logits([0.5, 0.25, 0.25], [0.2, 0.2, 0.6])
    ours = logits([0.25, 0.5, 0.25], [0.25, 0.25, 0.5])
    tally = Tally()
    tally.add(ours, reference, torch.tensor([0, 2]))
    first = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    second = 0.4 * math.log(0.8) + 0.6 * math.log(1.2)
    assert tally.kl == pytest.approx((first + second) / 2, abs=1e-7)
    assert tally.perplexity == pytest.approx(math.sqrt(4 * 2))
    assert tally.agreement == 0.5


def test_sums_over_windows_are_means_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, ours = torch.randn(2, 5, 7, generator=generator)
    targets = torch.tensor([0, 1, 2, 3, 4])
    whole, parts = Tally(), Tally()
    whole.add(Prediction.of(ours), Prediction.of(reference), targets)
    for rows in (slice(0, 2), slice(2, 5)):
        parts.add(Prediction.of(ours[rows]), Prediction.of(reference[rows]), targets[rows])
    assert (parts.tokens, parts.agreed) == (whole.tokens, whole.agreed)
    assert (parts.kl, parts.perplexity) == pytest.approx((whole.kl, whole.perplexity))


def test_a_model_does_not_diverge_from_itself() -> None:
    same = logits([0.7, 0.2, 0.1])
    tally = Tally()
    tally.add(same, same, torch.tensor([1]))
    assert (tally.kl, tally.agreement) == (pytest.approx(0.0, abs=1e-12), 1.0)


def judged(default_kl: float) -> Judged:
    return Judged(
        "Q4_1",
        {
            REFERENCE: Tally(tokens=100, surprise=200.0, agreed=100),
            DEFAULT: Tally(tokens=100, surprise=200.001, divergence=100 * default_kl, agreed=100),
            FAST: Tally(tokens=100, surprise=201.0, divergence=0.3, agreed=97),
            PEER: Tally(tokens=100, surprise=201.0, divergence=0.2, agreed=96),
        },
    )


def test_the_table_measures_everyone_against_fp32() -> None:
    text = table([judged(1e-6)])
    assert f"| Q4_1 | {REFERENCE} | 7.3891 |  |  |  | 100 |" in text
    assert f"| Q4_1 | {FAST} | 7.4633 | +1.005% | 0.003 | 97.00% | 100 |" in text


def test_what_is_required_can_fail() -> None:
    assert [line.rsplit(" ", 1)[1] for line in verdicts(judged(1e-6)).splitlines()] == ["yes", "yes", "no"]
    assert [line.rsplit(" ", 1)[1] for line in verdicts(judged(1e-4)).splitlines()] == ["yes", "no", "no"]


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)  # a token a byte
    text = Text("ab" * WINDOW)
    assert [len(window) for window in text.windows(model, WINDOW)] == [WINDOW, WINDOW]
    with pytest.raises(ValueError, match="the text has 1022"):
        text.windows(model, 2 * WINDOW)
