"""Loads a model onto a device, warms it up and runs batches."""

import torch

from model.batch import Batch, Chunk, Sampling, StepResult
from model.inputs import pack
from model.kv_cache import BLOCK_SIZE, KVCache
from model.sampling import choose_run
from model.transformer import Transformer


class Runner:
    """A Transformer and the cache it computes in."""

    def __init__(self, transformer: Transformer, cache: KVCache) -> None:
        self.transformer = transformer
        self.cache = cache

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        """Computes every chunk and chooses tokens for those that want them."""
        inputs = pack(batch, self.transformer.kernels.device)
        hidden = self.transformer(inputs, self.cache)
        logits = self.transformer.logits(hidden[inputs.sampled_rows])
        counts = [len(chunk.drafts) + 1 if chunk.sampling else 0 for chunk in batch.chunks]
        rows = logits.split_with_sizes(counts)
        return StepResult([choose_run(*work) for work in zip(rows, batch.chunks, strict=True)])

    def warm_up(self, step_tokens: int) -> None:
        """Runs the largest step once, so that whatever it allocates is there before the first request."""
        blocks = list(range(min(self.cache.num_blocks, -(-step_tokens // BLOCK_SIZE))))
        tokens = [0] * min(step_tokens, len(blocks) * BLOCK_SIZE)
        chunk = Chunk(tokens, 0, len(tokens), blocks, len(tokens), Sampling())
        (samples,) = self.run(Batch([chunk])).samples
        assert not isinstance(samples, str), samples
