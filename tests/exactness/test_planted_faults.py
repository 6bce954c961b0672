"""A server that is wrong in one detail breaks the relation that is named above it, so the relations prove the detail.

The very test of `test_relations.py` is run on each fault, with goldens that the faulty server has given itself. It has
to fail by what was answered, and by no assertion of the server's own.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import api_faults as api
import engine_faults as engine
import pytest
import test_readings as readings
import test_relations as relations
from in_process import Model
from loading import load_family
from serving import Served, serving

Plant = Callable[[pytest.MonkeyPatch], None]
Relation = Callable[..., None]

ENGINE_FAULTS: dict[Relation, list[Plant]] = {
    relations.test_m01_a_batch_of_any_size_says_what_each_of_it_says_alone: [
        engine.a_reduction_split_where_there_are_many_rows,
        engine.another_attention_for_a_single_row,
        engine.a_neighbours_blocks_are_read,
        engine.a_neighbours_bias_is_added,
        engine.a_block_in_use_is_given_away,
        engine.drafts_are_taken_on_trust,
        engine.a_rejected_draft_leaves_its_keys_and_values,
        engine.a_draft_is_followed_by_what_may_stand_in_its_place,
    ],
    relations.test_m02_place_in_the_batch_and_order_of_arrival_do_not_matter: [
        engine.draws_are_keyed_by_the_row_of_the_batch,
        engine.draws_go_on_where_the_last_one_ended,
    ],
    relations.test_m03_a_preempted_sequence_says_the_same: [
        engine.a_preempted_sequence_forgets_its_output,
        engine.what_was_computed_before_a_preemption_counts_as_computed,
    ],
    relations.test_m04_a_prefix_from_the_cache_is_the_prefix_computed: [
        engine.the_token_after_a_prefix_hit_is_skipped,
    ],
    relations.test_m04_a_prefix_that_was_evicted_is_computed_again: [
        engine.an_evicted_block_can_still_be_found,
    ],
    partial(relations.test_m04_a_second_turn_finds_what_was_computed_of_the_first, length=relations.BLOCK): [
        engine.a_block_is_committed_before_its_last_token_is_computed,
    ],
    relations.test_m05_however_a_prompt_is_chunked: [
        engine.positions_are_off_by_one_after_the_first_chunk,
        engine.a_later_chunks_mask_is_off_by_one,
    ],
    relations.test_m08_a_shorter_limit_cuts_the_answer_and_says_so: [
        engine.an_answer_is_one_token_too_long,
    ],
    relations.test_m08_a_lower_limit_keeps_the_answer_from_ending: [
        engine.min_tokens_is_off_by_one,
    ],
    relations.test_m10_a_bias_forbids_forces_or_changes_nothing: [
        engine.samples_are_kept_for_the_next_who_asks_the_same,
    ],
    relations.test_m11_the_limits_of_every_sampler: [
        engine.top_k_keeps_one_more,
    ],
    relations.test_m13_an_engine_that_dies_after_any_token_changes_nothing: [
        engine.a_resumed_sequence_loses_its_last_token,
        engine.a_resumed_sequences_output_counts_as_its_prompt,
    ],
    relations.test_m13_a_grammar_goes_on_in_another_engine_where_it_was: [
        engine.a_resumed_answer_begins_its_grammar_anew,
    ],
    relations.test_m14_what_befalls_a_neighbour_befalls_nobody_else: [
        engine.the_blocks_of_a_failed_sequence_stay_findable,
        engine.a_step_that_fails_fails_all_of_it,
    ],
    relations.test_m15_logprobs_are_the_models_own_and_those_of_the_text_as_a_prompt: [
        engine.logprobs_are_of_other_logits,
    ],
    relations.test_m17_a_salt_changes_what_is_found_in_the_cache_and_nothing_else: [
        engine.a_salt_is_ignored,
        engine.a_resumed_sequence_loses_its_salt,
    ],
    relations.test_m20_one_request_under_changing_load_has_one_answer: [
        engine.a_reduction_split_where_there_are_many_rows,
    ],
    readings.test_in_any_company_and_any_chunks: [
        engine.the_rows_of_a_slice_are_judged_by_its_first,
    ],
    readings.test_what_is_read_is_computed_and_all_before_may_come_from_the_cache: [
        engine.rows_that_the_cache_has_are_not_read,
    ],
    readings.test_a_preempted_prompt_goes_on_where_it_was_read_to: [
        engine.a_preempted_prompt_is_read_from_its_beginning,
    ],
    readings.test_an_engine_that_dies_tells_nothing_twice_and_leaves_nothing_untold: [
        engine.what_was_told_is_told_by_the_next_engine_too,
    ],
    readings.test_vectors_are_the_hidden_states_pooled_and_of_length_1: [
        engine.hidden_states_are_counted_in_eighths,
    ],
}
API_FAULTS: dict[Relation, list[Plant]] = {
    partial(relations.test_m06_a_stream_adds_up_to_the_unstreamed_text, text=relations.TEXTS[2]): [
        api.every_token_is_decoded_on_its_own,
        api.the_end_of_a_text_that_breaks_off_is_lost,
    ],
    relations.test_m07_choice_i_is_the_request_with_seed_plus_i: [
        api.seeds_hang_on_how_many_choices_there_are,
    ],
    relations.test_m09_a_stop_string_cuts_the_answer_and_nothing_of_it_was_ever_streamed: [
        api.a_stop_string_that_begins_within_its_own_beginning_is_missed,
        api.half_a_stop_string_is_streamed,
    ],
    partial(relations.test_m16_ids_and_text_are_the_same_prompt_and_counted_alike, way=relations.WAYS[0]): [
        api.text_is_encoded_with_one_token_more,
    ],
    partial(relations.test_m18_a_chat_is_the_completion_of_its_rendered_template, way=relations.WAYS[0]): [
        api.a_chat_is_rendered_with_one_token_more,
    ],
}


def planted(plant: Plant) -> tuple[str, ...]:
    """The command of an engine process with the fault."""
    return sys.executable, "-P", str(Path(__file__).with_name("planted_engine.py")), plant.__name__


def pairs(faults: dict[Relation, list[Plant]]) -> Any:
    flat = [(relation, plant) for relation, plants in faults.items() for plant in plants]
    return pytest.mark.parametrize(("relation", "plant"), flat, ids=[plant.__name__ for _, plant in flat])


def assert_broken(relation: Callable[[], None]) -> None:
    with pytest.raises(AssertionError) as failure:
        relation()
    assert failure.traceback[-1].path.name in ("test_relations.py", "test_readings.py"), failure.getrepr()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_family("llama, tied", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def eager(llama: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """Without goldens, and without the recording, which would pass faults of kernels by."""
    monkeypatch.setattr(llama.runner, "recording", None)
    return Model(llama.runner)


@pairs(ENGINE_FAULTS)
def test_a_fault_of_the_engine_breaks_its_relation(
    relation: Relation, plant: Plant, eager: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert_broken(lambda: relation(model=eager))


def test_draws_that_are_coarse_break_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    engine.draws_are_coarse(monkeypatch)
    sampling = relations.Sampling(top_k=5)
    assert_broken(lambda: relations.test_m12_draws_follow_the_distribution_and_stay_within_the_mask(sampling))


@pairs(API_FAULTS)
def test_a_fault_before_the_engine_breaks_its_relation(
    relation: Relation, plant: Plant, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert_broken(lambda: relation(served=served))


def test_draws_that_hang_on_the_process_break_a_restart(copying_model: Path) -> None:
    with serving(copying_model, planted(engine.draws_hang_on_the_process)) as forgetful:
        assert_broken(lambda: relations.test_m19_another_process_says_the_same(forgetful))
