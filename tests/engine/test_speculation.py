"""When does a step carry drafts, and what becomes of them?"""

from driving import END, SIZE, add

from model.batch import Chunk, Sample, StepResult
from server.engine.block_pool import BlockPool
from server.engine.messages import Delta
from server.engine.scheduler import Limits, Scheduler

LOOP = [1, 2, 3] * 3  # goes on with 1, 2, 3


def speculating(blocks: int = 64, budget: int = 100, drafted: int = 8) -> Scheduler:
    return Scheduler(Limits(8, budget, drafted), BlockPool(blocks, SIZE))


def chunks(of: Scheduler) -> list[Chunk]:
    batch = of.schedule()
    assert batch is not None
    return batch.chunks


def answer(to: Scheduler, *rows: list[int] | str) -> list[Delta]:
    """Closes the step with these tokens, or this error, for each chunk."""
    deltas = to.apply(StepResult([row if isinstance(row, str) else [Sample(token) for token in row] for row in rows]))
    assert to.check() is None
    return deltas


def decoding(scheduler: Scheduler, id: int = 1, max_tokens: int = 20) -> None:
    """Queues the loop and lets its prompt be computed; so far the answer goes on as it does."""
    add(scheduler, id, LOOP, max_tokens)
    (chunk,) = chunks(scheduler)
    assert not chunk.drafts
    answer(scheduler, [1])


def test_a_small_step_carries_drafts_and_accepts_those_that_were_chosen() -> None:
    alone = speculating()
    decoding(alone)
    (chunk,) = chunks(alone)
    assert (chunk.start, chunk.stop, chunk.drafts[:2]) == (9, 10, (2, 3))
    (delta,) = answer(alone, [2, 9])
    assert delta.tokens == [2, 9]
    (chunk,) = chunks(alone)
    assert (chunk.start, chunk.stop, chunk.tokens[chunk.start]) == (11, 12, 9)
    assert alone.stats(0.0, 0).drafts_accepted == 1
    assert alone.stats(0.0, 0).drafts_proposed >= 2


def test_without_speculation_there_are_no_drafts() -> None:
    plain = speculating(drafted=0)
    decoding(plain)
    assert not chunks(plain)[0].drafts


def test_a_step_counts_its_drafts_and_keeps_to_its_limits() -> None:
    for budget, drafted in [(100, 8), (100, 3), (9, 20)]:
        alone = speculating(budget=budget, drafted=drafted)
        decoding(alone, max_tokens=100)
        for _ in range(8):
            (chunk,) = chunks(alone)
            assert len(chunk) <= min(budget, drafted)
            assert alone.stats(0.0, 0).step_tokens == len(chunk)
            answer(alone, [*chunk.drafts, chunk.knowing(len(chunk.drafts)).tokens[-3]])
        assert len(chunk) == min(budget, drafted)


def test_sequences_share_the_room_and_many_leave_none() -> None:
    for sequences in range(1, 9):
        many = speculating()
        for id in range(sequences):
            add(many, id, [100 * id, *LOOP], 40)
        answer(many, *[[1]] * len(chunks(many)))
        for _ in range(30):
            batch = chunks(many)
            assert sum(map(len, batch)) <= max(8, sequences)
            assert max(len(chunk.drafts) for chunk in batch) <= (8 - sequences) // sequences
            answer(many, *([chunk.knowing(len(chunk.drafts)).tokens[-3]] for chunk in batch))


def test_a_step_with_a_prompt_has_no_drafts() -> None:
    mixed = speculating()
    decoding(mixed)
    add(mixed, 2, 20)
    assert [chunk.drafts for chunk in chunks(mixed)] == [(), ()]


def test_a_draft_never_reaches_beyond_the_last_token() -> None:
    short = speculating()
    decoding(short, max_tokens=3)
    (chunk,) = chunks(short)
    assert chunk.drafts == (2,)
    (delta,) = answer(short, [2, 3])
    assert (delta.tokens, delta.finish) == ([2, 3], "length")


def test_what_was_chosen_after_an_ending_token_is_dropped() -> None:
    ended = speculating()
    add(ended, 1, [1, 2, END] * 3, 20)
    chunks(ended)
    answer(ended, [1])
    (chunk,) = chunks(ended)
    assert chunk.drafts[:2] == (2, END)
    (delta,) = answer(ended, [2, END, 1])
    assert (delta.tokens, delta.finish) == ([2, END], "stop")
    assert (ended.running, ended.pool.used) == ([], 0)
    assert ended.stats(0.0, 0).drafts_accepted == 1


def test_accepted_drafts_fill_blocks_that_others_find_and_rejected_ones_do_not() -> None:
    first = speculating()
    decoding(first, max_tokens=4)
    (chunk,) = chunks(first)
    assert chunk.drafts == (2, 3)
    answer(first, [2, 50])  # 3 was computed at position 11, which ends a block
    (chunk,) = chunks(first)
    assert (chunk.start, chunk.stop) == (11, 12)
    answer(first, [60])
    for tokens, found in [([*LOOP, 1, 2, 50, 60], 12), ([*LOOP, 1, 2, 3, 60], 8)]:
        add(first, tokens[-2], tokens, max_tokens=1)
        assert chunks(first)[0].start == found
        answer(first, [0])


def test_a_draft_takes_only_blocks_that_nobody_needs() -> None:
    full = speculating(blocks=4)  # room for 16 tokens; the loop with its first answer has 10, in 3 blocks
    decoding(full, max_tokens=7)
    (chunk,) = chunks(full)
    assert len(chunk.blocks) == 3  # one is left, which stays for the next token
    assert chunk.end <= 12
    answer(full, [2])
    while full.running:
        batch = chunks(full)
        answer(full, *[[5]] * len(batch))
    assert full.preemptions == 0


def test_a_step_that_failed_with_drafts_is_repeated_without_them_once() -> None:
    shaken = speculating()
    decoding(shaken)
    (chunk,) = chunks(shaken)
    assert chunk.drafts
    assert answer(shaken, "nan") == []
    (chunk,) = chunks(shaken)
    assert (chunk.start, chunk.stop, chunk.drafts) == (9, 10, ())
    (delta,) = answer(shaken, [2])
    assert delta.tokens == [2]
    chunks(shaken)
    (delta,) = answer(shaken, "nan")
    assert (delta.finish, delta.error) == ("error", "nan")


def test_a_cancel_while_drafts_are_computed_frees_everything() -> None:
    left = speculating()
    decoding(left)
    (chunk,) = chunks(left)
    left.cancel(1)
    assert answer(left, [*chunk.drafts, 1]) == []
    assert (left.running, left.pool.used) == ([], 0)


def test_a_preempted_sequence_goes_on_with_what_was_accepted() -> None:
    squeezed = speculating()
    decoding(squeezed)
    (chunk,) = chunks(squeezed)
    answer(squeezed, [*chunk.drafts, 9])
    squeezed._preempt(squeezed.running[-1])
    (chunk,) = chunks(squeezed)
    assert chunk.stop == len(chunk.tokens) == 9 + 1 + squeezed.drafts_accepted + 1
