"""What a model's features come to."""

import math
from dataclasses import replace

from model.config import Experts, ModelConfig

SMALL = ModelConfig(
    family="any",
    vocab_size=9,
    dim=8,
    num_layers=4,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    hidden_dim=16,
    context_length=64,
)


def test_attention_takes_as_long_as_the_weights_at_the_context_rate() -> None:
    weights = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # queries, keys and values, output, gate and up and down
    per_position = 2 * 8  # a score and a weighted value of each head
    assert SMALL.context_rate == weights / per_position / 2
    assert replace(SMALL, gated=False).context_rate == (weights - 8 * 16) / per_position / 2
    chosen = Experts(count=8, per_token=2, hidden_dim=8, normalize=True)
    assert replace(SMALL, experts=chosen).context_rate == SMALL.context_rate


def test_windows_leave_less_attention_that_grows() -> None:
    assert replace(SMALL, windows=(5, None, 5, 5)).context_rate == 4 * SMALL.context_rate
    assert replace(SMALL, windows=(5,) * 4).context_rate == math.inf
