"""What a prompt tells of itself, its tokens' log probabilities or one vector, is the same in any company, bit for bit.

As in `test_relations.py`: the engine's own loop, scheduler, runner and C++ kernels on a tiny model of every family.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from in_process import Answer, Events, Model, Setting

from model import reading
from model.batch import Batch, Chunk, Reading, Sampling
from model.inputs import pack
from model.transformer import Transformer
from server.engine.journal import Journal
from server.engine.messages import Delta
from server.engine.streams import Order, TokenStream

BLOCK = 16
VOCABULARY = 96
SHARED = [(11 * place) % VOCABULARY for place in range(2 * BLOCK)]
GREEDY = Sampling(temperature=0.0, top_logprobs=2)
DRAWN = Sampling(seed=5, top_logprobs=2)


def prompt_of(place: int, length: int) -> list[int]:
    return [*SHARED, *((7 * place + 13 * step * step) % VOCABULARY for step in range(length))]


def orders() -> list[Order]:
    """Everything that can be read, beside prompts of which nothing is; some that begin alike, some that go on."""
    made = []
    for place in range(24):
        prompt = prompt_of(place, 5 + place) if place % 3 else prompt_of(place, 30)[BLOCK + place :]
        readings = [
            Reading(top_logprobs=0),
            Reading(top_logprobs=3),
            Reading(start=len(prompt) - 4, top_logprobs=1),
            Reading(),
            Reading(dimensions=7),
            Reading(start=len(prompt) - 1),
            None,
        ]
        told = readings[place % len(readings)]
        is_vector = told is not None and told.top_logprobs is None
        max_tokens = 0 if is_vector or (told is not None and place % 2) else 4
        made.append(Order(prompt, max_tokens, [], replace(GREEDY, seed=place), reading=told))
    return made


def test_in_any_company_and_any_chunks(model: Model) -> None:
    everyone = orders()
    alone = model.alone(everyone)
    for order, answer in zip(everyone, alone, strict=True):
        told = order.reading
        has_vector = told is not None and told.top_logprobs is None
        assert bool(answer.vector) == has_vector
        start = told.start if told is not None and not has_vector else len(order.prompt) - 1
        assert len(answer.read) == len(order.prompt) - 1 - start
    for step_tokens in (512, 40, BLOCK + 1, 7, 1):
        assert model.run(everyone, Setting(step_tokens=step_tokens)) == alone
    arrivals = [5 * place % 17 for place in range(len(everyone))]
    assert model.run(everyone, Setting(step_tokens=24), Events(arrivals=arrivals)) == alone


def test_however_few_rows_are_judged_at_a_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = orders()
    alone = model.alone(everyone)
    for rows in (1, 5, 1000):
        monkeypatch.setattr(reading, "ROWS_AT_ONCE", rows)
        assert model.run(everyone) == alone


def test_however_long_a_prompt_few_rows_of_logits_are_there_at_once(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, rows = Transformer.logits, []

    def logits(self: Transformer, x_TD: torch.Tensor) -> torch.Tensor:
        rows.append(len(x_TD))
        return plain(self, x_TD)

    monkeypatch.setattr(Transformer, "logits", logits)
    prompt = prompt_of(1, 3 * reading.ROWS_AT_ONCE)
    (answer,) = model.run([Order(prompt, 1, [], GREEDY, reading=Reading(top_logprobs=20))])
    assert len(answer.read) == len(prompt) - 1
    assert max(rows) == reading.ROWS_AT_ONCE


def test_what_is_read_is_computed_and_all_before_may_come_from_the_cache(model: Model) -> None:
    prompt = prompt_of(1, 20)
    warm = Order(prompt, 1, [], GREEDY)
    everyone = [
        warm,
        Order(prompt, 1, [], GREEDY, reading=Reading(top_logprobs=1)),
        Order(prompt, 0, [], GREEDY, reading=Reading(start=2 * BLOCK + 1, top_logprobs=1)),
        Order(prompt, 0, [], GREEDY, reading=Reading()),
        Order(prompt, 0, [], GREEDY, reading=Reading(start=len(prompt) - 1)),
        warm,
    ]
    answers = model.run(everyone, events=Events(arrivals=[1000 * place for place in range(len(everyone))]))
    assert answers == model.alone(everyone)
    assert [answer.cached_tokens for answer in answers] == [0, 0, 2 * BLOCK, 0, 3 * BLOCK, 3 * BLOCK]


def test_a_preempted_prompt_goes_on_where_it_was_read_to(model: Model) -> None:
    """The elder one takes the last block while the younger one is read, token by token."""
    elder = Order(prompt_of(9, 0)[:30], 34, [], DRAWN)
    for told, max_tokens in ((Reading(top_logprobs=2), 5), (Reading(top_logprobs=0), 0), (Reading(), 0)):
        pair = [elder, Order([1, *prompt_of(3, 0)[:29]], max_tokens, [], GREEDY, reading=told)]
        answers = model.run(pair, Setting(blocks=5, step_tokens=2))
        assert model.preempted == {1}
        assert answers == model.alone(pair)


def test_an_engine_that_dies_tells_nothing_twice_and_leaves_nothing_untold(model: Model) -> None:
    order = Order(prompt_of(2, 12), 3, [], GREEDY, reading=Reading(top_logprobs=2))
    (whole,) = model.alone([order])
    deltas = model.deltas(order, Setting(step_tokens=5))
    assert len(deltas) > 9
    for died_after in range(len(deltas)):
        journal = Journal()
        journal.add(order, TokenStream(0, lambda id: None))
        (entry,) = journal.due()
        assert entry.run is not None
        before = [_of_run(delta, entry.run) for delta in deltas[:died_after]]
        for delta in before:
            assert journal.record(delta) is entry
        journal.lose_engine()
        (entry,) = journal.due()
        (rest,) = model.run([entry.submit()], Setting(step_tokens=11))
        findings = [delta.finding for delta in before if delta.finding]
        told = [told for each in findings for told in zip(each.logprobs, each.ranks, strict=True)]
        tokens = [token for delta in before for token in delta.tokens]
        assert [*told, *rest.read] == whole.read
        assert [*tokens, *rest.tokens] == whole.tokens


def _of_run(delta: Delta, run: int) -> Delta:
    return Delta(run, delta.tokens, delta.logprobs, delta.finish, delta.cached_tokens, finding=delta.finding)


def test_a_token_is_as_likely_in_a_prompt_as_in_an_answer(model: Model) -> None:
    for place in range(4):
        order = Order(prompt_of(place, 9), 8, [], Sampling(seed=place, top_logprobs=3))
        (said,) = model.alone([order])
        text = [*order.prompt, *said.tokens]
        (read,) = model.alone(
            [Order(text, 0, [], GREEDY, reading=Reading(start=len(order.prompt) - 1, top_logprobs=3))]
        )
        assert [logprobs for logprobs, _ in read.read] == said.logprobs
        for logprobs, rank in read.read:
            assert rank > 3 or logprobs.top[rank - 1][1] == logprobs.chosen


@torch.inference_mode()
def test_vectors_are_the_hidden_states_pooled_and_of_length_1(model: Model) -> None:
    prompt = prompt_of(5, 11)
    model.runner.cache.poison(list(range(8)))
    inputs = pack(Batch([Chunk(prompt, 0, len(prompt), list(range(8)), len(prompt), None)]), torch.device("cpu"))
    hidden = model.runner.transformer(inputs, model.runner.cache).double().numpy()
    ways = {"mean": Reading(), "cut": Reading(dimensions=5), "last": Reading(start=len(prompt) - 1)}
    want = {"mean": hidden.mean(0), "cut": hidden.mean(0)[:5], "last": hidden[-1]}
    answers = model.run([Order(prompt, 0, [], GREEDY, reading=way) for way in ways.values()])
    for (name, values), answer in zip(want.items(), answers, strict=True):
        told = np.frombuffer(answer.vector, "<f4")
        assert np.linalg.norm(told) == pytest.approx(1.0, abs=1e-6), name
        assert told == pytest.approx(values / np.linalg.norm(values), abs=1e-6), name


def test_what_is_not_finite_fails_who_reads_it_and_nobody_else(model: Model) -> None:
    """Its blocks are poisoned once it is under way."""
    victims = [Order(prompt_of(7, 30), 0, [], GREEDY, reading=told) for told in (Reading(top_logprobs=0), Reading())]
    others = [Order(prompt_of(40 + place, 20)[BLOCK:], 4, [], GREEDY) for place in range(3)]
    alone: list[Answer] = model.alone(others)
    for victim in victims:
        poisoned: list[Chunk] = []

        def poison(batch: Batch, victim: Order = victim, poisoned: list[Chunk] = poisoned) -> None:
            for chunk in batch.chunks:
                if chunk.tokens == victim.prompt and chunk.start and not poisoned:
                    poisoned.append(chunk)
                    model.runner.cache.poison(chunk.blocks)

        *answers, last = model.run([*others, victim], Setting(step_tokens=20), Events(before=poison))
        assert poisoned
        assert last.finish == "error"
        assert answers == alone
