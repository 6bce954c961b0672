"""How much memory the weights, the largest step and the KV cache take, and how much there is."""

from dataclasses import dataclass
from pathlib import Path

import torch

from model.config import ModelConfig
from model.kernels import Kernels
from model.kv_cache import BLOCK_SIZE, block_bytes
from model.reading import ROWS_AT_ONCE

GIB = 1024**3

# Of what is free after weights and step: a card serves nobody else but its graphs, a computer does.
_CACHE_SHARE = {"cuda": 0.9, "cpu": 0.25}


class NotEnoughMemory(ValueError):
    """Not even one block fits."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A sum in bytes, and the number of blocks that it allows."""

    free: int
    weights: int
    step: int
    block: int
    num_blocks: int

    @property
    def cache(self) -> int:
        return (self.num_blocks + 1) * self.block  # one is for rows that nobody needs

    def __str__(self) -> str:
        per_token = self.block / BLOCK_SIZE / 1024
        tokens = f"{self.num_blocks:,} blocks x {BLOCK_SIZE} tokens x {per_token:.1f} KiB"
        rows = [
            ("weights", self.weights, ""),
            ("largest step", self.step, ""),
            ("KV cache", self.cache, f"{tokens}, {self.num_blocks * BLOCK_SIZE:,} tokens"),
            ("sum", self.weights + self.step + self.cache, f"of {_readable(self.free)} free"),
        ]
        return "\n".join(f"{name:<14}{_readable(size):>10}  {note}".rstrip() for name, size, note in rows)


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The largest step: so many rows, of which so many sample, the longest context being so long, on so many ranks."""

    step_tokens: int
    max_sequences: int
    context_length: int
    ranks: int = 1


def plan(
    config: ModelConfig,
    weights: int,
    step: int,
    free: int,
    limits: StepLimits,
    device: torch.device,
    kv_dtype: torch.dtype,
    kv_memory: float | None = None,
) -> MemoryPlan:
    """Shares out `free` bytes, the weights' included. `kv_memory`, in GiB, overrules the cache's share."""
    block = block_bytes(config, kv_dtype)
    left = free - weights - step
    budget = int(kv_memory * GIB) if kv_memory is not None else int(max(left, 0) * _CACHE_SHARE[device.type])
    if kv_memory is not None and budget > left:
        raise NotEnoughMemory(
            f"kv-memory of {_readable(budget)} does not fit: {_readable(max(left, 0))} of {_readable(free)} are left "
            f"beside weights ({_readable(weights)}) and the largest step ({_readable(step)})"
        )
    wanted = limits.max_sequences * -(-limits.context_length // BLOCK_SIZE)  # more could never be used at once
    num_blocks = min(budget // block - 1, wanted)  # one is for nobody: see `KVCache`
    if num_blocks < 1:
        raise NotEnoughMemory(f"{_readable(free)} of memory hold no KV block beside weights of {_readable(weights)}")
    return MemoryPlan(free, weights, step, block, num_blocks)


def step_bytes(config: ModelConfig, limits: StepLimits, kernels: Kernels) -> int:
    """An upper estimate of what the largest step allocates at its widest moment, in fp32."""
    heads = config.num_heads + 2 * config.num_kv_heads
    hidden = config.hidden_dim if config.experts is None else config.experts.hidden_dim * config.experts.per_token
    widths = 4 + 2 * (limits.ranks - 1)  # what the other ranks have computed, as it came and in fp32
    rows = limits.step_tokens * (widths * config.dim + 2 * heads * config.head_dim + 4 * hidden)
    attention = kernels.attention_bytes(limits.step_tokens, config.num_heads, config.head_dim, limits.context_length)
    logits = 3 * min(max(limits.max_sequences, ROWS_AT_ONCE), limits.step_tokens) * config.vocab_size
    return 4 * (rows + logits) + attention


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: of the card, or of the machine and its control group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_available_on_machine(), _left_in_control_group())


def _available_on_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        import os

        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _left_in_control_group() -> int:
    """What a container's limit leaves; the page cache counts as used there and is given up on demand."""
    unlimited = 1 << 62
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit, used = Path(limit_file).read_text().strip(), int(Path(used_file).read_text())
        except (OSError, ValueError):
            continue
        return unlimited if limit == "max" else int(limit) - used
    return unlimited


def _readable(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
