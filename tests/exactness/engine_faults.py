"""One detail of the engine wrong, planted at the seam where such a fault would lie."""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

import model.reading as reading_room
import model.runner as runner_room
import model.sampling as sampling_room
from model.batch import Batch, Chunk, Sample, Sampling, StepResult
from model.inputs import Inputs, pack
from model.kernels import drawing
from model.kernels.cpu import CpuKernels
from model.kernels.philox import uniform
from model.kernels.reference import AttentionShape, Kernels, LayerCache, Prepared, Span
from model.kv_cache import BLOCK_SIZE
from model.runner import Runner
from model.transformer import Transformer
from server.engine.block_pool import BlockPool, Prefix
from server.engine.constraint import Constraint, Constraints
from server.engine.journal import Entry
from server.engine.loop import Loop
from server.engine.messages import Delta, Submit
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence

Patch = pytest.MonkeyPatch

# Kernels


def a_reduction_split_where_there_are_many_rows(patch: Patch) -> None:
    plain = CpuKernels.linear

    def linear(self: CpuKernels, x_TD: Tensor, weight: Prepared, bias: Tensor | None = None) -> Tensor:
        if len(x_TD) == 1:
            return plain(self, x_TD, weight, bias)
        left = x_TD.clone()
        left[:, x_TD.shape[1] // 2 :] = 0
        return plain(self, left, weight, bias) + plain(self, x_TD - left, weight)

    patch.setattr(CpuKernels, "linear", linear)


def another_attention_for_a_single_row(patch: Patch) -> None:
    plain = CpuKernels.attention

    def attention(
        self: CpuKernels, q_THd: Tensor, cache: LayerCache, spans: list[Span], shape: AttentionShape
    ) -> Tensor:
        return (Kernels.attention if len(q_THd) == 1 else plain)(self, q_THd, cache, spans, shape)

    patch.setattr(CpuKernels, "attention", attention)


def a_rejected_draft_leaves_its_keys_and_values(patch: Patch) -> None:
    """What is stored where no NaN is any more goes nowhere."""
    plain = CpuKernels.store

    def store(self: CpuKernels, k_TGd: Tensor, v_TGd: Tensor, cache: LayerCache, slots_T: Tensor) -> None:
        assert cache.scales is not None
        fresh = cache.scales[0, slots_T // cache.block_size, 0, slots_T % cache.block_size].isnan()
        plain(self, k_TGd[fresh], v_TGd[fresh], cache, slots_T[fresh])

    patch.setattr(CpuKernels, "store", store)


# What the runner makes of a batch


def packed_with(patch: Patch, change: Callable[[Inputs], None]) -> None:
    def packed(*given: Any, **named: Any) -> Inputs:
        inputs = pack(*given, **named)
        change(inputs)
        return inputs

    patch.setattr(runner_room, "pack", packed)


def a_neighbours_blocks_are_read(patch: Patch) -> None:
    """Those full ones that both have."""

    def change(inputs: Inputs) -> None:
        for place, (one, other) in enumerate(zip(inputs.spans, inputs.spans[1:], strict=False)):
            count = min(one.start, other.start) // BLOCK_SIZE
            blocks = torch.cat((other.blocks[:count], one.blocks[count:]))
            inputs.spans[place] = replace(one, blocks=blocks)

    packed_with(patch, change)


def positions_are_off_by_one_after_the_first_chunk(patch: Patch) -> None:
    def change(inputs: Inputs) -> None:
        for span in inputs.spans:
            inputs.positions[span.first_row : span.last_row] += span.start > 0

    packed_with(patch, change)


def a_later_chunks_mask_is_off_by_one(patch: Patch) -> None:
    def change(inputs: Inputs) -> None:
        inputs.spans[:] = [replace(span, start=span.start - (span.start > 0)) for span in inputs.spans]

    packed_with(patch, change)


def run_with(patch: Patch, change: Callable[[int, Chunk, Batch], Sampling]) -> None:
    """Every chunk that chooses does so as `change` says."""
    plain = Runner.run

    def run(self: Runner, batch: Batch) -> StepResult:
        chunks = [
            replace(chunk, sampling=change(place, chunk, batch)) if chunk.sampling else chunk
            for place, chunk in enumerate(batch.chunks)
        ]
        return plain(self, Batch(chunks))

    patch.setattr(Runner, "run", run)


def draws_are_keyed_by_the_row_of_the_batch(patch: Patch) -> None:
    run_with(patch, lambda place, chunk, batch: replace(chunk.sampling, seed=chunk.sampling.seed + place))


def a_neighbours_bias_is_added(patch: Patch) -> None:
    def change(place: int, chunk: Chunk, batch: Batch) -> Sampling:
        neighbour = batch.chunks[place - 1].sampling or chunk.sampling
        return replace(chunk.sampling, logit_bias=neighbour.logit_bias)

    run_with(patch, change)


def samples_are_kept_for_the_next_who_asks_the_same(patch: Patch) -> None:
    plain, kept = Runner.run, dict[tuple[int, ...], list[Sample] | str]()

    def run(self: Runner, batch: Batch) -> StepResult:
        samples = plain(self, batch).samples
        texts = [tuple(chunk.tokens[: chunk.stop]) for chunk in batch.chunks]
        return StepResult([each and kept.setdefault(text, each) for text, each in zip(texts, samples, strict=True)])

    patch.setattr(Runner, "run", run)


# Sampling


def draws_go_on_where_the_last_one_ended(patch: Patch) -> None:
    state = random.Random(0)
    patch.setattr(drawing, "uniform", lambda seed, position: state.random())


def draws_hang_on_the_process(patch: Patch) -> None:
    patch.setattr(drawing, "uniform", lambda seed, position: uniform(seed ^ os.getpid(), position))


def draws_are_coarse(patch: Patch) -> None:
    patch.setattr(drawing, "uniform", lambda seed, position: uniform(seed, position) // 0.05 * 0.05)


def drafts_are_taken_on_trust(patch: Patch) -> None:
    plain = sampling_room.choose_run

    def choose_run(logits_SV: Tensor, best_S: list[int], chunk: Chunk, kernels: Kernels) -> list[Sample] | str:
        samples = plain(logits_SV, best_S, chunk, kernels)
        assert not isinstance(samples, str)
        return [*(Sample(draft, samples[0].logprobs) for draft in chunk.drafts), samples[-1]]

    patch.setattr(runner_room, "choose_run", choose_run)


def min_tokens_is_off_by_one(patch: Patch) -> None:
    plain = sampling_room.allowed

    def allowed(chunk: Chunk, mask: bytes | None, *, like: Tensor) -> Tensor | None:
        assert chunk.sampling is not None
        sampling = replace(chunk.sampling, min_tokens=chunk.sampling.min_tokens - 1)
        return plain(replace(chunk, sampling=sampling), mask, like=like)

    patch.setattr(sampling_room, "allowed", allowed)


def a_draft_is_followed_by_what_may_stand_in_its_place(patch: Patch) -> None:
    plain = Constraint._compute

    def compute(self: Constraint, drafts: tuple[int, ...]) -> list[bytes]:
        return [*plain(self, ()), *plain(self, drafts)[:-1]]

    patch.setattr(Constraint, "_compute", compute)


def a_resumed_answer_begins_its_grammar_anew(patch: Patch) -> None:
    plain = Constraints.build
    patch.setattr(Constraints, "build", lambda self, grammar, output: plain(self, grammar, []))


def top_k_keeps_one_more(patch: Patch) -> None:
    plain = drawing.likeliest
    patch.setattr(drawing, "likeliest", lambda values, count: plain(values, count + 1))


def logprobs_are_of_other_logits(patch: Patch) -> None:
    plain = sampling_room.logprobs_of
    patch.setattr(sampling_room, "logprobs_of", lambda logits_V, token, top: plain(logits_V / 0.9, token, top))


# The block pool and the scheduler


def a_block_is_committed_before_its_last_token_is_computed(patch: Patch) -> None:
    plain = BlockPool.commit

    def commit(self: BlockPool, sequence: Sequence) -> None:
        computed, sequence.computed = sequence.computed, len(sequence.tokens)
        plain(self, sequence)
        sequence.computed = computed

    patch.setattr(BlockPool, "commit", commit)


def an_evicted_block_can_still_be_found(patch: Patch) -> None:
    patch.setattr(BlockPool, "_unlist", lambda self, block: None)


def a_salt_is_ignored(patch: Patch) -> None:
    patch.setattr(Sequence, "root", (None, ""))


def a_resumed_sequence_loses_its_salt(patch: Patch) -> None:
    plain = Entry.submit
    patch.setattr(Entry, "submit", lambda self: msgspec.structs.replace(plain(self), salt=""))


def a_block_in_use_is_given_away(patch: Patch) -> None:
    plain, taken = BlockPool._take, list[int]()

    def take(self: BlockPool) -> int:
        block = plain(self)
        taken.append(block)
        used = [other for other in range(self.total) if self._references[other] and other != block]
        if len(taken) % 5 or not used:
            return block
        self._references[block] = 0
        self._retire(block)
        self._references[used[0]] += 1
        return used[0]

    patch.setattr(BlockPool, "_take", take)


def the_token_after_a_prefix_hit_is_skipped(patch: Patch) -> None:
    plain = BlockPool.share

    def share(self: BlockPool, sequence: Sequence, prefix: Prefix) -> None:
        plain(self, sequence, prefix)
        sequence.computed += sequence.computed > 0

    patch.setattr(BlockPool, "share", share)


def what_was_computed_before_a_preemption_counts_as_computed(patch: Patch) -> None:
    plain = BlockPool.share

    def share(self: BlockPool, sequence: Sequence, prefix: Prefix) -> None:
        plain(self, sequence, prefix)
        if sequence.has_started:
            sequence.computed = len(sequence.tokens) - 1

    patch.setattr(BlockPool, "share", share)


def a_preempted_sequence_forgets_its_output(patch: Patch) -> None:
    plain = Scheduler._preempt

    def preempt(self: Scheduler, sequence: Sequence) -> None:
        plain(self, sequence)
        del sequence.tokens[sequence.prompt_length :]
        sequence.drafter = None

    patch.setattr(Scheduler, "_preempt", preempt)


def an_answer_is_one_token_too_long(patch: Patch) -> None:
    def finish(self: Sequence) -> str | None:
        return "length" if self.output_length > self.max_tokens else None

    patch.setattr(Sequence, "finish", property(finish))


def the_blocks_of_a_failed_sequence_stay_findable(patch: Patch) -> None:
    patch.setattr(BlockPool, "forget", lambda self, sequence: None)


def a_step_that_fails_fails_all_of_it(patch: Patch) -> None:
    def compute(self: Loop, batch: Batch) -> StepResult:
        try:
            return self.runner.run(batch)
        except RuntimeError:
            return StepResult(["computing it failed"] * len(batch.chunks))

    patch.setattr(Loop, "_compute", compute)


# The journal


def a_resumed_sequence_loses_its_last_token(patch: Patch) -> None:
    plain = Entry.submit

    def submit(self: Entry) -> Submit:
        order = plain(self)
        return msgspec.structs.replace(order, output=order.output[:-1])

    patch.setattr(Entry, "submit", submit)


def a_resumed_sequences_output_counts_as_its_prompt(patch: Patch) -> None:
    def submit(self: Entry) -> Submit:
        order, done = self.order, self.output
        left = order.max_tokens - len(done)
        return Submit(self.run, [*order.prompt, *done], left, order.ending_ids, order.sampling, [], self.cached_tokens)

    patch.setattr(Entry, "submit", submit)


# What is read of prompts


def rows_that_the_cache_has_are_not_read(patch: Patch) -> None:
    plain = BlockPool.share

    def share(self: BlockPool, sequence: Sequence, prefix: Prefix) -> None:
        plain(self, sequence, prefix)
        if sequence.reading is not None:
            sequence.reading = replace(sequence.reading, start=max(sequence.reading.start, sequence.computed))

    patch.setattr(Sequence, "reusable", property(lambda self: len(self.tokens) - 1))
    patch.setattr(BlockPool, "share", share)


def a_preempted_prompt_is_read_from_its_beginning(patch: Patch) -> None:
    plain = Scheduler._preempt

    def preempt(self: Scheduler, sequence: Sequence) -> None:
        sequence.reading = sequence.reading and replace(sequence.reading, start=0)
        plain(self, sequence)

    patch.setattr(Scheduler, "_preempt", preempt)


def what_was_told_is_told_by_the_next_engine_too(patch: Patch) -> None:
    plain = Entry.hear

    def hear(self: Entry, delta: Delta) -> None:
        order = self.order
        plain(self, delta)
        self.order = order

    patch.setattr(Entry, "hear", hear)


def the_rows_of_a_slice_are_judged_by_its_first(patch: Patch) -> None:
    plain = Transformer.logits

    def logits(self: Transformer, x_TD: Tensor) -> Tensor:
        return plain(self, x_TD if len(x_TD) < 4 else x_TD[:1].expand(len(x_TD), -1))

    patch.setattr(Transformer, "logits", logits)


def hidden_states_are_counted_in_eighths(patch: Patch) -> None:
    patch.setattr(reading_room, "_UNIT", 8.0)
