"""Runs batches through a model: warms it up, records its forward pass, chooses the tokens."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from model.adapters import Adapter
from model.batch import Batch, Chunk, Finding, Sample, Sampling, StepResult
from model.halving import halves, joined
from model.inputs import Inputs, pack
from model.kernels.reference import Forward, Span
from model.kernels.streams import Download
from model.kv_cache import BLOCK_SIZE, KVCache
from model.linear import Adapted
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
        self._replay: Forward = self._forward
        self.max_replayed_rows = 0  # larger steps, and all where nothing is recorded, run eagerly
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
        inputs = pack(batch, kernels.device, kernels.streams.upload)
        if len(inputs.awaited):
            inputs.ids[inputs.waiting_rows] = self._choices[inputs.awaited].clamp(min=0)  # an error is no id
        hidden = self._hidden(inputs)
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
        for place, (chunk, span) in enumerate(zip(batch.chunks, inputs.spans, strict=True)):
            if rows := chunk.read_rows:
                first = span.first_row + rows.start - chunk.start
                told[place] = read(self.transformer, hidden[first : first + len(rows)], chunk)
        return told

    def warm_up(self, step_tokens: int) -> None:
        """Records the forward pass and computes a step, so that what it allocates is there before the first request.

        A recording has its memory for the largest step from the beginning; without one that step has to be computed.
        """
        length = min(step_tokens, self.cache.num_blocks * BLOCK_SIZE)
        self._record(self._example(0, length))
        rows = min(length, _TRIAL_ROWS) if self.max_replayed_rows else length
        started = time.monotonic()
        (samples,) = self.run(self._example(0, rows)).samples
        assert not isinstance(samples, str), samples
        self.largest_step_s = (time.monotonic() - started) * length / rows

    @torch.inference_mode()
    def _record(self, largest: Batch) -> None:
        """A recording is used only if it repeats, bit for bit, what is computed without it, first rows and a later.

        What passes between ranks cannot be recorded.
        """
        kernels = self.transformer.kernels
        if self.transformer.ranks.size > 1:
            return
        inputs = pack(largest, kernels.device)
        replay = kernels.record(self._forward, self.transformer.rows(inputs), inputs.spans)
        if replay is None:
            return
        rows = min(len(inputs.ids), _TRIAL_ROWS)
        for trial in (self._example(0, rows), self._example(rows - 1, rows)):
            packed = pack(trial, kernels.device)
            given = self.transformer.rows(packed)
            expected = self._forward(given, packed.spans)
            if not torch.equal(replay(given, packed.spans), expected):
                return
        self._replay, self.max_replayed_rows = replay, len(inputs.ids)

    def _hidden(self, inputs: Inputs) -> Tensor:
        """A step that holds rows of an adapter is not replayed: which rows have which is another matter each time."""
        if inputs.adapted:
            adapted = [Adapted(rows, self.adapters[digest].updates) for digest, rows in inputs.adapted.items()]
            return self.transformer.forward(self.transformer.rows(inputs), inputs.spans, self.cache, adapted)
        run = self._replay if len(inputs.ids) <= self.max_replayed_rows else self._forward
        return run(self.transformer.rows(inputs), inputs.spans)

    def _forward(self, rows: tuple[Tensor, ...], spans: list[Span]) -> Tensor:
        return self.transformer.forward(rows, spans, self.cache)

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
