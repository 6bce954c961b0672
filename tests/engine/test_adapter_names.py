"""Names of adapters, weights that have none any more, and answers that come late or never."""

import asyncio
from pathlib import Path

import pytest

from server.engine.adapters import MAX_ADAPTERS, Adapters, Refused
from server.engine.messages import AdapterLoaded, AdapterRefused, DropAdapter, LoadAdapter, ToEngine
from server.errors import BadRequest, EngineGone, ModelNotFound


class Engine:
    """Answers at once, with what lies in a folder as its digest, unless it is told to be silent."""

    def __init__(self, **wanted: str) -> None:
        self.contents: dict[str, str] = {}
        self.is_silent = False
        self.asked: list[LoadAdapter] = []
        self.has: set[str] = set()
        self.in_use: set[str] = set()
        self.adapters = Adapters(
            {name: Path(folder) for name, folder in wanted.items()}, self._take, lambda digest: digest in self.in_use
        )

    def _take(self, message: ToEngine) -> None:
        if isinstance(message, DropAdapter):
            self.has.remove(message.digest)
            return
        assert isinstance(message, LoadAdapter)
        self.asked.append(message)
        if not self.is_silent:
            self.answer()

    def answer(self) -> None:
        message = self.asked.pop(0)
        digest = self.contents.get(message.folder)
        if digest is None:
            self.adapters.hear(AdapterRefused(message.id, "nothing there"))
            return
        self.has.add(digest)
        self.adapters.hear(AdapterLoaded(message.id, digest))

    async def die(self) -> None:
        self.adapters.lose_engine()
        self.has, self.asked, self.is_silent = set(), [], False
        await self.adapters.equip()


@pytest.fixture
def engine() -> Engine:
    engine = Engine()
    engine.contents = {"red": "r", "also red": "r", "blue": "b"}
    return engine


def names(engine: Engine) -> dict[str, str]:
    return {adapter.name: adapter.digest for adapter in engine.adapters.named}


async def test_weights_go_with_their_last_name_and_their_last_sequence(engine: Engine) -> None:
    for name, folder in (("a", "red"), ("b", "also red")):
        await engine.adapters.load(name, Path(folder))
    engine.adapters.unload("a")
    assert engine.has == {"r"}
    engine.in_use = {"r"}
    engine.adapters.unload("b")
    assert engine.has == {"r"}
    engine.in_use = set()
    engine.adapters.sweep()
    assert engine.has == set()
    assert "r" not in engine.adapters


async def test_nothing_is_dropped_while_the_same_may_be_read(engine: Engine) -> None:
    await engine.adapters.load("a", Path("red"))
    engine.is_silent = True
    again = asyncio.create_task(engine.adapters.load("b", Path("also red")))
    await asyncio.sleep(0)
    engine.adapters.unload("a")
    assert engine.has == {"r"}
    engine.answer()
    await again
    assert (names(engine), engine.has) == ({"b": "r"}, {"r"})


async def test_a_name_is_given_once_and_not_without_end(engine: Engine) -> None:
    engine.is_silent = True
    first = asyncio.create_task(engine.adapters.load("a", Path("red")))
    await asyncio.sleep(0)
    with pytest.raises(BadRequest, match="of this name"):
        await engine.adapters.load("a", Path("blue"))
    engine.answer()
    await first
    engine.is_silent = False
    for place in range(MAX_ADAPTERS - 1):
        await engine.adapters.load(f"a{place}", Path("red"))
    with pytest.raises(BadRequest, match="unload one first"):
        await engine.adapters.load("b", Path("blue"))
    with pytest.raises(ModelNotFound):
        engine.adapters.unload("b")


async def test_what_cannot_be_loaded_leaves_its_name_free(engine: Engine) -> None:
    with pytest.raises(BadRequest, match="nothing there"):
        await engine.adapters.load("a", Path("nowhere"))
    await engine.adapters.load("a", Path("red"))
    assert names(engine) == {"a": "r"}


async def test_whoever_waits_for_an_engine_that_dies_is_told(engine: Engine) -> None:
    engine.is_silent = True
    waiting = asyncio.create_task(engine.adapters.load("a", Path("red")))
    await asyncio.sleep(0)
    await engine.die()
    with pytest.raises(EngineGone):
        await waiting
    assert (names(engine), engine.has) == ({}, set())


async def test_weights_that_come_when_nobody_waits_any_more_are_dropped(engine: Engine) -> None:
    engine.is_silent = True
    waiting = asyncio.create_task(engine.adapters.load("a", Path("red")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    engine.answer()
    assert (names(engine), engine.has) == ({}, set())


async def test_the_next_engine_has_all_that_is_named_or_in_use(engine: Engine) -> None:
    """As it finds it: one adapter has changed and one is gone."""
    for name, folder in (("a", "red"), ("b", "blue"), ("c", "also red")):
        await engine.adapters.load(name, Path(folder))
    engine.in_use = {"b"}
    engine.adapters.unload("b")
    await engine.die()
    assert (names(engine), engine.has) == ({"a": "r", "c": "r"}, {"r", "b"})
    engine.contents = {"red": "changed", "blue": "b"}
    await engine.die()
    assert (names(engine), engine.has) == ({"a": "changed"}, {"changed", "b"})
    assert "r" not in engine.adapters


async def test_no_engine_starts_without_what_is_wanted() -> None:
    engine = Engine(a="red", b="nowhere")
    engine.contents = {"red": "r"}
    with pytest.raises(Refused, match="adapter b, nowhere: nothing there"):
        await engine.adapters.equip()
    engine.contents["nowhere"] = "n"
    await engine.adapters.equip()
    assert names(engine) == {"a": "r", "b": "n"}
    assert engine.adapters.are_wanted
