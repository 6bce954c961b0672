"""Whether a whole Transformer on the Triton kernels says what it says on the reference, however a prompt is cut."""

from dataclasses import replace

import pytest
import torch
from random_weights import RandomWeights
from tiny_configs import GEMMA, GPT2, LLAMA, PAPER
from torch import Tensor

from model.batch import Batch, Chunk
from model.config import Experts, ModelConfig
from model.inputs import pack
from model.kernels import Kernels
from model.kernels.triton import TritonKernels
from model.kv_cache import KVCache
from model.transformer import Transformer

MIXTRAL = replace(LLAMA, family="mixtral", experts=Experts(count=4, per_token=2, hidden_dim=32, normalize=True))
TOKENS = [0, 7, 14, 21, 28, 35, 42, 49, 56, 63, 70, 77, 84, 91, 2, 9, 16, 23]
BLOCKS = [2, 0]


def hidden(config: ModelConfig, kernels: Kernels, kv_dtype: torch.dtype, cuts: list[int]) -> tuple[Tensor, Tensor]:
    """The hidden states of the prompt's rows, computed in such chunks, and the last one's logits."""
    model = Transformer(config, RandomWeights(), kernels)  # type: ignore[arg-type]
    cache = KVCache(config, 5, kv_dtype, kernels.device, kernels.are_keys_in_rows)
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, len(TOKENS)], strict=True):
        chunk = Chunk(TOKENS, start, stop, BLOCKS, len(TOKENS), None)
        parts.append(model(pack(Batch([chunk]), kernels.device), cache))
    return torch.cat(parts), model.logits(parts[-1])[-1]


@pytest.mark.parametrize(
    ("config", "kv_dtype"),
    [
        (LLAMA, torch.int16),
        (LLAMA, torch.float8_e4m3fn),
        *((config, torch.float32) for config in (GEMMA, GPT2, PAPER, MIXTRAL)),
    ],
    ids=lambda value: getattr(value, "family", str(value)),
)
def test_a_prompt_is_read_alike(device: torch.device, config: ModelConfig, kv_dtype: torch.dtype) -> None:
    fast, plain = (kind(device, torch.float32) for kind in (TritonKernels, Kernels))
    states, logits = hidden(config, fast, kv_dtype, [])
    expected, expected_logits = hidden(config, plain, kv_dtype, [])
    assert (states - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert (logits - expected_logits).abs().max() <= 1e-3 * expected_logits.abs().max()
    again, last = hidden(config, fast, kv_dtype, [1, 16])
    assert torch.equal(again, states)
    assert torch.equal(last, logits)
