"""Runs batches through a model: warms it up, records its forward pass, chooses the tokens."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from model.adapters import Adapter
from model.batch import Batch, Chunk, Finding, Sample, Sampling, StepResult
from model.halving import halves, joined
from model.inputs import Inputs, Padding, pack
from model.kernels.reference import Recording, Span
from model.kernels.streams import Download
from model.kv_cache import BLOCK_SIZE, KVCache
from model.largest_step import largest_steps
from model.linear import Adapted
from model.memory import MemoryPlan, StepLimits
from model.reading import read
from model.sampling import choose_run, propose
from model.transformer import Transformer

_TRIAL_ROWS = 33
_EXAMPLE_KINDS = 61  # tokens that warming up uses; a prime, so that positions that are powers of 2 differ in theirs


@dataclass(frozen=True, slots=True)
class _Begun:
    """A step that the device is told of."""

    batch: Batch
    inputs: Inputs
    hidden: Tensor
    logits: Tensor
    choices: Download  # what `propose` says of its rows


class Runner:
    """A Transformer and the cache it computes in."""

    def __init__(self, transformer: Transformer, cache: KVCache) -> None:
        self.transformer = transformer
        self.cache = cache
        self.adapters: dict[str, Adapter] = {}  # by digest; those that chunks may name
        self.recording: Recording | None = None  # steps that it does not hold run eagerly
        self.memory: MemoryPlan | None = None  # by which it was loaded
        self.largest_step_s = 0.0  # what it may take, once warmed up
        self._under_way: deque[Callable[[], StepResult]] = deque()
        self._choices = torch.empty(0, dtype=torch.int64)  # of the step that was begun last

    def run(self, batch: Batch) -> StepResult:
        """Computes every chunk and chooses tokens for those that want them.

        Where the device has not enough memory, it is tried once more, in two halves; but not by one of several ranks,
        which the others would not join.
        """
        if self.transformer.ranks.size > 1:
            return self._run(batch)
        with suppress(torch.OutOfMemoryError):
            return self._run(batch)
        return self._run_in_halves(batch)  # out here, where no error holds on to what the step had allocated

    def dispatch(self, batch: Batch) -> None:
        """Tells the device to compute it after all that it was told before; `collect` has the result.

        Its chunks may await choices of what was dispatched last.
        """
        if self._under_way:  # it may await choices, which those of a half would replace
            self._under_way.append(partial(self._finish, self._begin(batch)))
            return
        with suppress(torch.OutOfMemoryError):
            self._under_way.append(partial(self._finish, self._begin(batch)))
            return
        result = self._run_in_halves(batch)
        self._under_way.append(lambda: result)

    def collect(self) -> StepResult:
        """The result of what was dispatched first. The host waits once for it, where all chunks are foreseeable."""
        return self._under_way.popleft()()

    def abandon(self) -> None:
        """Forgets what was dispatched and not collected."""
        self._under_way.clear()

    def _run(self, batch: Batch) -> StepResult:
        return self._finish(self._begin(batch))

    def _run_in_halves(self, batch: Batch) -> StepResult:
        self.transformer.kernels.streams.free_unused()
        first, second = halves(batch)
        before = self._run(first) if first.chunks else StepResult([])
        return joined(before, self._run(second), len(batch.chunks))

    @torch.inference_mode()
    def _begin(self, batch: Batch) -> _Begun:
        kernels = self.transformer.kernels
        padding = self._padding(batch)
        inputs = pack(batch, kernels.device, kernels.streams.upload, padding)
        if len(inputs.awaited):
            inputs.ids[inputs.waiting_rows] = self._choices[inputs.awaited].clamp(min=0)  # an error is no id
        hidden = self._hidden(inputs, is_recorded=padding is not None)
        logits = self.transformer.logits(hidden[inputs.sampled_rows])
        self._choices = propose(logits, batch.chunks, kernels)
        return _Begun(batch, inputs, hidden, logits, kernels.streams.download(self._choices))

    @torch.inference_mode()
    def _finish(self, begun: _Begun) -> StepResult:
        batch, logits = begun.batch, begun.logits
        told = self._read(batch, begun.inputs, begun.hidden)
        choices = iter(begun.choices.wait().tolist())
        counts = [len(chunk.drafts) + 1 if chunk.sampling else 0 for chunk in batch.chunks]
        rows = zip(logits.split_with_sizes(counts), counts, batch.chunks, strict=True)
        kernels = self.transformer.kernels
        samples = [choose_run(chunk_rows, list(islice(choices, n)), chunk, kernels) for chunk_rows, n, chunk in rows]
        return _joined(samples, told)

    def _read(self, batch: Batch, inputs: Inputs, hidden: Tensor) -> dict[int, Finding | str]:
        """By the chunk's place, where one has rows to read."""
        told: dict[int, Finding | str] = {}
        for place, (chunk, span) in enumerate(zip(batch.chunks, inputs.spans, strict=False)):
            if rows := chunk.read_rows:
                first = span.first_row + rows.start - chunk.start
                told[place] = read(self.transformer, hidden[first : first + len(rows)], chunk)
        return told

    def warm_up(self, step_tokens: int) -> None:
        """Computes a step, so that what it allocates is there before the first request.

        A recording has its memory for the largest step from the beginning; without one that step has to be computed.
        """
        length = self._longest(step_tokens)
        largest = self._example(0, length)
        rows = length if self._padding(largest) is None else min(length, _TRIAL_ROWS)
        started = time.monotonic()
        (samples,) = self.run(self._example(0, rows)).samples
        assert not isinstance(samples, str), samples
        self.largest_step_s = (time.monotonic() - started) * length / rows

    @torch.inference_mode()
    def rehearse(self, limits: StepLimits) -> int:
        """Computes the largest steps there may be; the bytes that the device sets aside. Raises OutOfMemoryError."""

        def compute() -> None:
            for step in largest_steps(limits, self.cache.scrap_block):
                under_way = [self._begin(step), self._begin(step)]  # one ahead of the other
                while under_way:
                    self._finish(under_way.pop(0))

        return self.transformer.kernels.streams.peak(compute)

    @torch.inference_mode()
    def record_more(self) -> bool:
        """Records for one more size of steps, for which nobody should wait; whether it has, and may again."""
        return self.recording is not None and self.recording.extend()

    @torch.inference_mode()
    def record(self, step_tokens: int) -> None:
        """Lets steps be replayed, if the kernels can do that. What passes between ranks cannot be recorded.

        A recording is used only if it repeats, bit for bit, what is computed without it, first rows and a later.
        """
        if self.transformer.ranks.size > 1:
            return
        most_rows = self._longest(step_tokens)
        kernels, context_length = self.transformer.kernels, self.transformer.config.context_length
        self.recording = kernels.record(self._forward, self._scrap_rows, most_rows, context_length)
        rows = min(most_rows, _TRIAL_ROWS)
        if not all(self._repeats(trial) for trial in (self._example(0, rows), self._example(rows - 1, rows))):
            self.recording = None

    def _repeats(self, trial: Batch) -> bool:
        """Of what is not recorded as yet, there is nothing to say."""
        padding = self._padding(trial)
        if self.recording is None or padding is None:
            return True
        inputs = pack(trial, self.transformer.kernels.device, padding=padding)
        rows = self.transformer.rows(inputs)
        expected = self._forward(rows, inputs.spans)
        return torch.equal(self.recording.replay(rows, inputs.spans), expected)

    def _padding(self, batch: Batch) -> Padding | None:
        """What fills the step up to a size that is recorded; None where it runs eagerly.

        A step that holds rows of an adapter does: which rows have which is another matter each time.
        """
        if self.recording is None or any(chunk.adapter for chunk in batch.chunks):
            return None
        rows = sum(map(len, batch.chunks))
        padded = self.recording.padded(rows, max(chunk.end for chunk in batch.chunks))
        return None if padded is None else Padding(padded - rows, self.cache.scrap_block)

    def _scrap_rows(self, count: int) -> tuple[tuple[Tensor, ...], list[Span]]:
        """So many rows that write to the scrap block: of tokens that differ as far as that reaches."""
        scrap, rows = self.cache.scrap_block, min(count, BLOCK_SIZE)
        (example,) = self._example(0, rows).chunks
        chunk = replace(example, blocks=[scrap], sampling=None)
        inputs = pack(Batch([chunk]), self.transformer.kernels.device, padding=Padding(count - rows, scrap))
        return self.transformer.rows(inputs), inputs.spans

    def _hidden(self, inputs: Inputs, is_recorded: bool) -> Tensor:
        rows = self.transformer.rows(inputs)
        if self.recording is not None and is_recorded:
            return self.recording.replay(rows, inputs.spans)
        if not inputs.adapted:
            return self._forward(rows, inputs.spans)
        adapted = [Adapted(those, self.adapters[digest].updates) for digest, those in inputs.adapted.items()]
        return self.transformer.forward(rows, inputs.spans, self.cache, adapted)

    def _forward(self, rows: tuple[Tensor, ...], spans: list[Span]) -> Tensor:
        return self.transformer.forward(rows, spans, self.cache)

    def _longest(self, step_tokens: int) -> int:
        """Tokens of the longest chunk that the cache has room for."""
        return min(step_tokens, self.cache.num_blocks * BLOCK_SIZE)

    def _example(self, start: int, stop: int) -> Batch:
        """One chunk, of tokens that differ, in the first blocks."""
        kinds = min(_EXAMPLE_KINDS, self.transformer.config.vocab_size)
        tokens = [position % kinds for position in range(stop)]
        blocks = list(range(-(-stop // BLOCK_SIZE)))
        return Batch([Chunk(tokens, start, stop, blocks, stop, Sampling())])


def _joined(samples: list[list[Sample] | str], told: dict[int, Finding | str]) -> StepResult:
    """A chunk that could not be read has failed, whatever it has chosen."""
    errors = {place: error for place, error in told.items() if isinstance(error, str)}
    findings = {place: finding for place, finding in told.items() if isinstance(finding, Finding)}
    return StepResult([errors.get(place, chosen) for place, chosen in enumerate(samples)], findings)
