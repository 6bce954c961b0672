"""Who computes what in which step, and what becomes of it?"""

import pytest
from driving import END, NEXT, add, answer, finish_all, plan, scheduler, step

from model.batch import Batch, Logprobs, Sample, StepResult
from server.engine.messages import Delta


def test_there_is_no_step_when_nobody_wants_one() -> None:
    idle = scheduler()
    assert idle.schedule() is None
    add(idle, 1, 5, max_tokens=1)
    assert isinstance(idle.schedule(), Batch)
    answer(idle)
    assert idle.schedule() is None


def test_a_prompt_is_computed_then_its_output_token_by_token() -> None:
    calm = scheduler()
    add(calm, 1, 5, max_tokens=3)
    assert [step(calm) for _ in range(4)] == [{1: (0, 5)}, {1: (5, 6)}, {1: (6, 7)}, {}]


def test_a_long_prompt_is_cut_to_the_budget_and_only_its_end_chooses_a_token() -> None:
    tight = scheduler(budget=6)
    add(tight, 1, 15)
    cuts = []
    for _ in range(4):
        batch = tight.schedule()
        assert batch is not None
        chunk = batch.chunks[0]
        cuts.append((chunk.start, chunk.stop, chunk.sampling is not None, len(answer(tight))))
    assert cuts == [(0, 6, False, 0), (6, 12, False, 0), (12, 15, True, 1), (15, 16, True, 1)]


def test_a_long_prompt_does_not_starve_those_who_are_decoding() -> None:
    tight = scheduler(budget=6)
    add(tight, 1, 2)
    add(tight, 2, 2)
    step(tight)
    add(tight, 3, 12)
    assert step(tight) == {1: (2, 3), 2: (2, 3), 3: (0, 4)}
    assert step(tight) == {1: (3, 4), 2: (3, 4), 3: (4, 8)}


def test_tokens_far_into_a_prompt_are_computed_in_smaller_steps() -> None:
    """At position 20 attention takes as long as all else, so a token counts twice there, at 40 three times."""
    tight = scheduler(budget=12, context_rate=20.0)
    add(tight, 1, 2)
    step(tight)
    add(tight, 2, 60)
    cuts = [step(tight)[2] for _ in range(5)]
    assert cuts[0] == (0, 11)
    assert [stop - start for start, stop in cuts] == [11, 7, 5, 5, 4]
    assert all((stop - start) * (1 + start / 20) <= 11 for start, stop in cuts)


def test_however_far_into_a_prompt_every_step_moves_on() -> None:
    tight = scheduler(blocks=60, budget=3, context_rate=1.0)
    add(tight, 1, 200, max_tokens=1)
    cuts = [step(tight)[1] for _ in range(197)]
    assert cuts[:3] == [(0, 3), (3, 4), (4, 5)]
    assert cuts[-1] == (198, 199)


def test_those_who_decode_far_into_their_contexts_all_move_on() -> None:
    full = scheduler(sequences=4, budget=4, context_rate=1.0)
    for id in range(4):
        add(full, id, [id], max_tokens=30)
    step(full)
    assert all(step(full) == dict.fromkeys(range(4), (position, position + 1)) for position in range(1, 30))


def test_a_budget_below_the_number_of_sequences_still_serves_each_running_one_in_every_step() -> None:
    tight = scheduler(sequences=8, budget=2)
    for id in range(4):
        add(tight, id, 1, max_tokens=2)
    assert [list(step(tight)) for _ in range(4)] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_sequences_start_in_order_of_arrival_up_to_the_limit() -> None:
    small = scheduler(sequences=2)
    for id, max_tokens in [(1, 3), (2, 1), (3, 9)]:
        add(small, id, 5, max_tokens)
    assert [list(step(small)) for _ in range(2)] == [[1, 2], [1, 3]]


def test_a_start_is_announced_once_even_after_preemption() -> None:
    squeezed = scheduler(blocks=4)
    add(squeezed, 1, 7)
    add(squeezed, 2, 3)
    started = []
    while squeezed.schedule():
        started.append(list(squeezed.started))
        answer(squeezed)
    assert squeezed.preemptions
    assert [ids for ids in started if ids] == [[1, 2]]


def test_a_sequence_ends_with_an_ending_token_which_is_reported() -> None:
    calm = scheduler()
    add(calm, 1, 5, max_tokens=1)
    calm.schedule()
    assert answer(calm, token=END) == [Delta(1, [END], None, "stop", 0)]  # "stop" wins over "length"
    assert (calm.running, calm.pool.used) == ([], 0)


def test_a_sequence_ends_at_its_length_without_room_for_the_last_token() -> None:
    full = scheduler(blocks=2)
    add(full, 1, 5, max_tokens=4)  # 5 + 4 tokens, of which 8 are ever computed
    deltas = finish_all(full)
    assert [delta.tokens for delta in deltas] == [[NEXT]] * 4
    assert [delta.finish for delta in deltas] == [None, None, None, "length"]


def test_what_can_never_fit_is_the_callers_fault() -> None:
    with pytest.raises(AssertionError, match="never fit"):
        add(scheduler(blocks=2), 1, 5, max_tokens=5)


def test_logprobs_travel_with_their_token() -> None:
    calm = scheduler()
    add(calm, 1, 5)
    calm.schedule()
    logprobs = Logprobs(-0.5, [(NEXT, -0.5)])
    (delta,) = calm.apply(StepResult([[Sample(NEXT, logprobs)]]))
    assert delta.logprobs == [logprobs]


def test_a_second_request_starts_behind_the_prefix_it_shares() -> None:
    calm = scheduler()
    add(calm, 1, [*range(10)], max_tokens=1)
    step(calm)
    add(calm, 2, [*range(10), 99])
    assert plan(calm) == {2: (8, 11)}
    (delta,) = answer(calm)
    assert delta.cached_tokens == 8
    assert (calm.prefix_queries, calm.prefix_hits) == (21, 8)


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    calm = scheduler()
    for id in (1, 2, 3):
        add(calm, id, [*range(10)], max_tokens=5)
    assert step(calm) == {1: (0, 10)}
    assert step(calm) == {1: (10, 11), 2: (8, 10), 3: (8, 10)}


def test_a_follower_computes_for_itself_what_its_leader_failed_to() -> None:
    calm = scheduler()
    for id in (1, 2):
        add(calm, id, [*range(10)])
    assert plan(calm) == {1: (0, 10)}
    answer(calm, row_0="nan")
    assert plan(calm) == {2: (0, 10)}


def test_nobody_waits_for_a_block_that_is_not_shared_in_full() -> None:
    calm = scheduler()
    add(calm, 1, [0, 1, 2, 3])
    add(calm, 2, [0, 1, 2, 4])
    add(calm, 3, [0, 1, 2, 3])  # its last token is its own to compute, so the block is of no use to it
    assert list(plan(calm)) == [1, 2, 3]


def test_the_youngest_gives_its_blocks_back_and_resumes_from_what_is_still_cached() -> None:
    squeezed = scheduler(blocks=6)
    add(squeezed, 1, 12, max_tokens=8)
    add(squeezed, 2, 7, max_tokens=8)
    plans = [step(squeezed) for _ in range(9)]
    assert plans[:2] == [{1: (0, 12), 2: (0, 7)}, {1: (12, 13), 2: (7, 8)}]
    assert plans[2:8] == [{1: (position, position + 1)} for position in range(13, 19)]
    assert plans[8] == {2: (4, 9)}  # its second block had to go, its first is still there
    assert squeezed.preemptions == 1


def test_a_preempted_sequence_says_the_same_and_reports_the_same_hit() -> None:
    outputs = []
    for blocks in (64, 6):
        world = scheduler(blocks)
        sequences = [add(world, id, 7, max_tokens=10) for id in range(4)]
        deltas = finish_all(world)
        assert {delta.cached_tokens for delta in deltas} == {0}
        outputs.append([sequence.tokens for sequence in sequences])
    assert world.preemptions
    assert outputs[0] == outputs[1]


def test_the_oldest_is_never_preempted_and_moves_in_every_step() -> None:
    squeezed = scheduler(blocks=6)
    for id in range(5):
        add(squeezed, id, 7, max_tokens=10)
    while planned := step(squeezed):
        oldest = min([*planned, *(sequence.id for sequence in squeezed.waiting)])
        assert oldest in planned
    assert squeezed.preemptions


def test_of_those_that_wait_the_most_urgent_starts_first_and_of_equals_the_first_to_come() -> None:
    single = scheduler(sequences=1)
    for id, priority in enumerate([0, 5, -3, 0, 5, -3]):
        add(single, id, 2, max_tokens=2, priority=priority)
    started: list[int] = []
    while step(single):
        started += single.started
    assert started == [2, 5, 0, 3, 1, 4]


def test_nobody_is_stopped_for_a_more_urgent_newcomer_that_finds_no_room() -> None:
    single = scheduler(sequences=1)
    add(single, 1, 2, max_tokens=3, priority=9)
    step(single)
    add(single, 2, 2, max_tokens=3, priority=-9)
    assert [list(step(single)) for _ in range(3)] == [[1], [1], [2]]


def test_where_blocks_run_out_the_youngest_of_the_least_urgent_gives_way() -> None:
    squeezed = scheduler(blocks=9)
    for id, priority in enumerate([5, 5, 0, 0]):
        add(squeezed, id, 3, max_tokens=12, priority=priority)
    stays: list[list[int]] = []
    while planned := step(squeezed):
        if not stays or stays[-1] != sorted(planned):
            stays.append(sorted(planned))
    assert stays == [[0, 1, 2, 3], [0, 2, 3], [2, 3], [0, 1], [1]]


def test_priorities_change_no_token() -> None:
    outputs: list[dict[int, list[int]]] = []
    for priorities in ([0, 0, 0, 0], [3, 2, 1, 0], [0, 1, 2, 3]):
        squeezed = scheduler(blocks=6)
        for id, priority in enumerate(priorities):
            add(squeezed, id, 6, max_tokens=10, priority=priority)
        told: dict[int, list[int]] = {id: [] for id in range(4)}
        for delta in finish_all(squeezed):
            told[delta.id] += delta.tokens
        outputs.append(told)
        assert squeezed.preemptions
    assert outputs[0] == outputs[1] == outputs[2]


def test_a_start_leaves_every_running_sequence_a_block_to_grow() -> None:
    squeezed = scheduler(blocks=4)
    add(squeezed, 1, 8, max_tokens=2)
    add(squeezed, 2, 8, max_tokens=2)
    assert [list(step(squeezed)) for _ in range(3)] == [[1], [1], [2]]


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_waiting_is_fair_where_only_one_request_fits_at_a_time(prefix_cache: bool) -> None:
    squeezed = scheduler(blocks=6, prefix_cache=prefix_cache)
    for id in range(64):
        add(squeezed, id, 8, max_tokens=8)
    waits: dict[int, int] = {}
    for now in range(10_000):
        if squeezed.schedule() is None:
            break
        waits |= dict.fromkeys(squeezed.started, now)
        answer(squeezed)
    assert list(waits) == [*range(64)]
    assert max(waits.values()) <= 3 * sum(waits.values()) / 64


def test_cancelling_one_that_waits_forgets_it() -> None:
    small = scheduler(sequences=1)
    add(small, 1, 5)
    add(small, 2, 5)
    step(small)
    small.cancel(2)
    assert (small.check(), len(small.waiting)) == (None, 0)


def test_cancelling_one_that_runs_frees_its_blocks_at_once() -> None:
    calm = scheduler()
    add(calm, 1, 5)
    step(calm)
    calm.cancel(1)
    assert (calm.pool.used, calm.schedule()) == (0, None)


def test_cancelling_during_a_step_keeps_the_blocks_until_the_model_is_done_with_them() -> None:
    calm = scheduler()
    add(calm, 1, 5)
    add(calm, 2, 5)
    plan(calm)
    calm.cancel(1)
    calm.cancel(1)
    assert calm.pool.used == 4
    assert [delta.id for delta in answer(calm)] == [2]
    assert calm.pool.used == 2


def test_cancelling_a_stranger_changes_nothing() -> None:
    calm = scheduler()
    add(calm, 1, 5, max_tokens=2)
    calm.cancel(99)
    finish_all(calm)
    calm.cancel(1)
    assert calm.check() is None


def test_a_failed_row_ends_its_sequence_and_leaves_the_others_alone() -> None:
    calm = scheduler()
    add(calm, 1, 9)
    healthy = add(calm, 2, 9)
    plan(calm)
    failed, other = answer(calm, row_0="nan in row 0")
    assert failed == Delta(1, [], None, "error", 0, error="nan in row 0")
    assert other.tokens == [NEXT]
    assert calm.running == [healthy]
    assert (calm.pool.used, calm.pool.cached) == (3, 0)


def test_nothing_that_a_failed_sequence_computed_or_read_is_found_again() -> None:
    tight = scheduler(budget=8)
    add(tight, 1, [*range(12)])
    step(tight)  # two blocks go to the cache before the fault shows
    plan(tight)
    answer(tight, row_0="nan")
    assert tight.pool.cached == 0
    add(tight, 2, [*range(12)])
    assert plan(tight) == {2: (0, 8)}


def test_the_statistics_describe_the_step() -> None:
    small = scheduler(blocks=8, sequences=1)
    add(small, 1, 9)
    add(small, 2, 5)
    step(small)
    stats = small.stats(step_seconds=0.25, invariant_violations=0)
    assert (stats.running, stats.waiting, stats.step_tokens, stats.step_seconds) == (1, 1, 9, 0.25)
    assert (stats.blocks_free, stats.blocks_cached, stats.blocks_used) == (5, 0, 3)
    assert (stats.preemptions, stats.prefix_queries, stats.prefix_hits) == (0, 9, 0)


def test_a_step_is_applied_before_the_next_one() -> None:
    calm = scheduler()
    add(calm, 1, 5)
    calm.schedule()
    with pytest.raises(AssertionError, match="has not been applied"):
        calm.schedule()
