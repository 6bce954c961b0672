"""Sequences with adapters say what each says alone, bit for bit, whoever rides beside and whatever befalls them."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from engine_faults import packed_with
from in_process import BLOCKS, Events, Model, Setting
from loading import PACKED, load_family
from random_adapters import shapes_of, write_adapter
from test_relations import BLOCK, DRAWN, GREEDY, SHARED, TOKENS, orders, prompt_of

from model.adapters import read_adapter
from model.checkpoints.sources import DEFAULT_MODEL
from model.inputs import Inputs
from model.loading import load
from server.config import EngineOptions
from server.engine.journal import Entry, Journal
from server.engine.loop import open_for
from server.engine.sequence import Sequence
from server.engine.streams import Order, TokenStream


def adapted(model: Model, folder: Path, std: float = 0.15) -> list[str | None]:
    """None and the digests of three adapters of the model: of all projections, of other rank, and of a few only."""
    transformer = model.runner.transformer
    shapes = shapes_of(transformer)
    few = dict(list(shapes.items())[1::3])
    folders = [
        write_adapter(folder / "a", shapes, seed=1, std=std),
        write_adapter(folder / "b", shapes, seed=2, std=std, r=17, lora_alpha=17, use_rslora=True),
        write_adapter(folder / "c", few, seed=3, std=4 * std, r=1),
    ]
    adapters = [read_adapter(path, transformer) for path in folders]
    model.runner.adapters = {adapter.digest: adapter for adapter in adapters}
    return [None, *model.runner.adapters]


@pytest.fixture(scope="module", params=[PACKED, "gemma2", "gpt2", "mixtral"])
def company(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, list[str | None]]:
    folder = tmp_path_factory.mktemp("adapted")
    model = load_family(request.param, folder)
    return model, adapted(model, folder)


def with_each(everyone: list[Order], digests: list[str | None]) -> list[Order]:
    return [replace(order, adapter=digests[place % len(digests)]) for place, order in enumerate(everyone)]


def test_a_row_is_the_same_whatever_its_neighbours_are_computed_with(company: tuple[Model, list[str | None]]) -> None:
    model, digests = company
    everyone = with_each(orders(24), digests)
    alone = model.alone(everyone)
    draw = random.Random(1)
    for step_tokens in (512, 24):
        places = draw.sample(range(len(everyone)), len(everyone))
        arrivals = [draw.randrange(12) for _ in places]
        answers = model.run(
            [everyone[place] for place in places], Setting(step_tokens=step_tokens), Events(arrivals=arrivals)
        )
        assert answers == [alone[place] for place in places]


def test_each_adapter_has_its_own_answer_and_finds_its_own_prefix(company: tuple[Model, list[str | None]]) -> None:
    model, digests = company
    everyone = [Order([*SHARED, 1, 2, 3], TOKENS, [], GREEDY, adapter=digest) for digest in [*digests, *digests]]
    alone = model.alone(everyone)
    assert len({tuple(logprobs.chosen for logprobs in answer.logprobs) for answer in alone}) == len(digests)
    answers = model.run(everyone, events=Events(arrivals=[100 * place for place in range(len(everyone))]))
    assert answers == alone
    assert [answer.cached_tokens for answer in answers] == [0] * len(digests) + [2 * BLOCK] * len(digests)


def test_preemption_and_an_engines_end_change_nothing(company: tuple[Model, list[str | None]]) -> None:
    model, digests = company
    elder = Order(prompt_of(9, 14), 34, [], GREEDY, adapter=digests[1])
    pair = [elder, Order(prompt_of(1, 14), 34, [], DRAWN, adapter=digests[2])]
    alone = model.alone(pair)
    assert model.run(pair, Setting(blocks=3)) == alone
    assert model.preempted == {1}
    journal = Journal()
    for place, order in enumerate(pair):
        journal.add(order, TokenStream(place, lambda id: None))
    for entry, answer in zip(journal.due(), alone, strict=True):
        entry.output += answer.tokens[:20]
    journal.lose_engine()
    resumed = model.run([entry.submit() for entry in journal.due()])
    assert [answer.tokens for answer in resumed] == [answer.tokens[20:] for answer in alone]


def test_an_adapter_of_zeros_is_the_model_itself(company: tuple[Model, list[str | None]], tmp_path: Path) -> None:
    """What it adds is computed, and is nothing: the eager step has the bits of the recorded one."""
    model, _ = company
    nothing = read_adapter(
        write_adapter(tmp_path, shapes_of(model.runner.transformer), 4, std=0.0), model.runner.transformer
    )
    model.runner.adapters[nothing.digest] = nothing
    plain = orders(8)
    assert model.alone([replace(order, adapter=nothing.digest) for order in plain]) == model.alone(plain)


def test_these_relations_can_fail(
    company: tuple[Model, list[str | None]], monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    def shifted(inputs: Inputs) -> None:
        for digest, rows in inputs.adapted.items():
            inputs.adapted[digest] = slice(rows.start - (rows.start > 0), rows.stop)

    faults: list[tuple[Callable[[tuple[Model, list[str | None]]], None], Callable[[pytest.MonkeyPatch], None]]] = [
        (test_a_row_is_the_same_whatever_its_neighbours_are_computed_with, lambda patch: packed_with(patch, shifted)),
        (test_each_adapter_has_its_own_answer_and_finds_its_own_prefix, a_root_ignores_the_adapter),
        (test_preemption_and_an_engines_end_change_nothing, a_resumed_sequence_loses_its_adapter),
    ]
    for relation, plant in faults:
        with subtests.test(relation.__name__), monkeypatch.context() as patch:
            plant(patch)
            with pytest.raises(AssertionError):
                relation(company)


def a_root_ignores_the_adapter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sequence, "root", property(lambda self: (None, self.salt)))


def a_resumed_sequence_loses_its_adapter(patch: pytest.MonkeyPatch) -> None:
    plain = Entry.submit
    patch.setattr(Entry, "submit", lambda self: msgspec.structs.replace(plain(self), adapter=None))


def test_adapters_of_the_default_model(tmp_path: Path) -> None:
    """Whose weights are quantised: two adapters and none in one batch say what each says alone."""
    opened = open_for(
        EngineOptions(model=DEFAULT_MODEL, device="cpu", context_length=256, step_tokens=64), lambda *_: None
    )
    model = Model(load(opened, replace(opened.plan(), num_blocks=BLOCKS), lambda *_: None))
    digests = adapted(model, tmp_path, std=0.05)[:3]
    prompt = [place * 37 % 1000 + 500 for place in range(20)]
    everyone = [Order(prompt, 6, [], replace(GREEDY, top_logprobs=1), adapter=digest) for digest in digests]
    alone = model.alone(everyone)
    assert len({tuple(answer.tokens) for answer in alone}) == len(digests)
    assert model.run(everyone) == alone
