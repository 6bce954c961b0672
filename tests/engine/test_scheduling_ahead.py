"""A step that is scheduled before the tokens of the one before it are known changes nobody's tokens."""

from dataclasses import fields, replace

import pytest
from driving import END, NEXT, add, answer, plan, scheduler
from simulation import Violation, Watched, World

from model.batch import Batch, Reading, Sampling
from server.engine.block_pool import BlockPool
from server.engine.sequence import Sequence

WORLDS = 30
PLAIN = {"temperature", "top_p", "top_k", "min_p", "ending_ids", "seed"}
OTHERWISE = {
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {3: 1.0},
    "allowed_token_ids": (3,),
    "bad_words": ((3,),),
    "grammar": "{}",
    "min_tokens": 2,
    "last_resort_ids": (3,),
    "top_logprobs": 0,
}


def search(kind: type[Watched] = Watched, pool: type[BlockPool] = BlockPool) -> list[World]:
    worlds = [World(seed, kind, pool, reads=seed % 2 == 1, overlaps=True) for seed in range(WORLDS)]
    for world in worlds:
        world.run(1_500)
    return worlds


def test_random_demands_break_no_invariant_and_change_no_output() -> None:
    worlds = search()
    assert sum(world.overlapped for world in worlds) > sum(world.counts["step"] for world in worlds) / 4
    for kind in ("submit", "step", "cancel", "preempt", "finish"):
        assert sum(world.counts[kind] for world in worlds) > 100, kind


class ForgetsWhoHasEnded(Watched):
    def __contains__(self, sequence: Sequence) -> bool:
        return True


class AwaitsAnothersChoice(Watched):
    def ahead(self) -> Batch | None:
        batch = super().ahead()
        return batch and Batch([replace(chunk, awaits=chunk.awaits and 0) for chunk in batch.chunks])


class LeavesNoRoom(BlockPool):
    def extend(self, sequence: Sequence, more: int = 0) -> bool:
        return super().extend(sequence)


class SpendsTheLastBlock(BlockPool):
    def missing(self, sequence: Sequence, more: int) -> int:
        return 0 if more else super().missing(sequence, more)


class ForgetsRetracted(Watched):
    def retract(self) -> None:
        """Leaves it under way."""


@pytest.mark.parametrize(
    ("kind", "pool"),
    [
        (ForgetsWhoHasEnded, BlockPool),
        (AwaitsAnothersChoice, BlockPool),
        (Watched, LeavesNoRoom),
        (Watched, SpendsTheLastBlock),
        (ForgetsRetracted, BlockPool),
    ],
)
def test_the_simulation_finds_what_is_wrong(kind: type[Watched], pool: type[BlockPool]) -> None:
    with pytest.raises((Violation, AssertionError, IndexError, KeyError, ValueError)):
        search(kind, pool)


def test_a_decode_awaits_the_choice_of_the_step_under_way() -> None:
    of = scheduler()
    add(of, 1, 3)
    add(of, 2, 5)
    plan(of)
    batch = of.ahead()
    assert batch is not None
    assert [(chunk.start, chunk.stop, chunk.awaits) for chunk in batch.chunks] == [(3, 4, 0), (5, 6, 1)]
    answer(of)
    assert [delta.tokens for delta in answer(of)] == [[NEXT], [NEXT]]


def test_a_prompt_goes_on_beside_decodes() -> None:
    of = scheduler(budget=8)
    add(of, 1, 3)
    add(of, 2, 20)
    plan(of)
    batch = of.ahead()
    assert batch is not None
    assert [(chunk.start, chunk.stop, chunk.awaits) for chunk in batch.chunks] == [(3, 4, 0), (5, 12, None)]


def test_who_ends_meanwhile_gets_nothing_more_and_gives_its_blocks_back() -> None:
    of = scheduler(prefix_cache=False)
    add(of, 1, 3)
    plan(of)
    assert of.ahead() is not None
    (delta,) = answer(of, token=END)
    assert (delta.finish, of.pool.used) == ("stop", 0)
    assert of.ahead() is None
    assert answer(of) == []
    assert of.schedule() is None


def test_who_is_certain_to_end_is_not_computed_for_nothing() -> None:
    of = scheduler()
    add(of, 1, 3, max_tokens=1)
    add(of, 2, 3)
    plan(of)
    batch = of.ahead()
    assert batch is not None
    assert [chunk.awaits for chunk in batch.chunks] == [1]


def test_whoever_could_start_is_waited_for() -> None:
    of = scheduler()
    add(of, 1, 3)
    plan(of)
    add(of, 2, 3)
    assert of.ahead() is None


def test_every_field_of_sampling_is_plain_or_is_not_foreseen() -> None:
    assert {field.name for field in fields(Sampling)} == PLAIN | OTHERWISE.keys()
    assert Sampling(temperature=0.5, top_p=0.5, top_k=2, min_p=0.1, ending_ids=(1,), seed=3).is_plain
    for name, value in OTHERWISE.items():
        assert not Sampling(**{name: value}).is_plain, name


@pytest.mark.parametrize("name", OTHERWISE)
def test_no_step_goes_ahead_of_a_choice_that_is_not_plain(name: str) -> None:
    of = scheduler()
    add(of, 1, 3)
    sequence = add(of, 2, 3)
    sequence.sampling = Sampling(**{name: OTHERWISE[name]})
    plan(of)
    assert of.ahead() is None


def test_no_step_goes_ahead_of_rows_that_are_read() -> None:
    of = scheduler()
    add(of, 1, 3).reading = Reading()
    plan(of)
    assert of.ahead() is None


def test_a_cancel_frees_the_blocks_with_the_step_under_way() -> None:
    of = scheduler()
    add(of, 1, 3)
    add(of, 2, 3)
    plan(of)
    assert of.ahead() is not None
    of.cancel(1)
    assert [delta.id for delta in answer(of)] == [2]
    assert [sequence.id for sequence in of.running] == [2]
    assert [delta.id for delta in answer(of)] == [2]
