"""The keys and values of all computed positions: one pair of tensors a layer, addressed by block id."""

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels.reference import LayerCache, is_scaled

BLOCK_SIZE = 16  # positions


def block_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """What one block of positions takes over all layers."""
    scale_bytes = torch.float32.itemsize if is_scaled(dtype) else 0
    per_position = 2 * config.num_kv_heads * (config.head_dim * dtype.itemsize + scale_bytes)
    return config.num_layers * BLOCK_SIZE * per_position


class KVCache:
    """Paged as in Kwon et al. 2023. Memory is reserved at once and touched block by block."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        are_keys_in_rows: bool = False,
    ) -> None:
        """There is one block more, the scrap block, for rows that nobody needs.

        `are_keys_in_rows` is what the kernels say of themselves; the shapes are the same either way.
        """
        total = num_blocks + 1
        rows = (total, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
        columns = (total, config.num_kv_heads, config.head_dim, BLOCK_SIZE)
        scales = (2, total, config.num_kv_heads, BLOCK_SIZE)

        def keys() -> Tensor:
            if are_keys_in_rows:
                return torch.empty(rows, dtype=dtype, device=device).transpose(2, 3)
            return torch.empty(columns, dtype=dtype, device=device)

        self.num_blocks = num_blocks
        self.scrap_block = num_blocks
        self.layers = [
            LayerCache(
                keys(),
                torch.empty(rows, dtype=dtype, device=device),
                torch.empty(scales, device=device) if is_scaled(dtype) else None,
            )
            for _ in range(config.num_layers)
        ]
        self._fill([self.scrap_block], 0.0)  # nobody needs what is computed with it, but it has to be finite

    def poison(self, blocks: list[int]) -> None:
        """Makes every read of these blocks show: test mode calls it when they are freed."""
        self._fill(blocks, float("nan"))

    def _fill(self, blocks: list[int], value: float) -> None:
        for layer in self.layers:
            if layer.scales is not None:
                layer.scales[:, blocks] = value  # integers cannot be NaN
            else:
                layer.keys[blocks] = value
                layer.values[blocks] = value
