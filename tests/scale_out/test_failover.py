"""Streams outlive the replicas that have begun them, with the tokens they would have had."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_cluster import ScriptedCluster, Seen, answer, dies, engine_on, order, until

from model.batch import Finding, Reading, Sampling
from server.config import EngineOptions
from server.engine.messages import Delta
from server.engine.streams import Order, TokenStream
from server.errors import EngineGone, InternalError, ModelLoading, Overloaded
from server.scale_out import engine as scale_out
from server.scale_out.engine import Census, ClusterEngine
from server.scale_out.messages import Fault, Told, Unable


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_out, "_PAUSE_S", 0.0)


async def tokens_of(stream: TokenStream) -> list[int]:
    return [token async for delta in stream for token in delta.tokens]


@given(st.lists(st.integers(0, 7), max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whenever_replicas_die_the_tokens_are_those_of_one_that_lives(deaths: list[int]) -> None:
    async def ask() -> None:
        cluster, seen = ScriptedCluster(dies(*deaths)), Seen()
        engine = await engine_on(cluster, seen)
        (stream,) = engine.submit([order(1, 2, 3, max_tokens=60)])
        assert await tokens_of(stream) == answer([1, 2, 3], 60)
        await engine.idle()
        assert (seen.moves, seen.ends) == (len(deaths), 1)
        await engine.stop()

    if not any(deaths[at : at + scale_out.MAX_FRUITLESS] == [0] * scale_out.MAX_FRUITLESS for at in range(len(deaths))):
        asyncio.run(ask())


async def test_the_next_replica_is_told_what_the_last_has_said() -> None:
    cluster = ScriptedCluster(dies(3))
    engine = await engine_on(cluster, Seen())
    (stream,) = engine.submit([order(5, max_tokens=6)])
    await tokens_of(stream)
    first, second = (attempt.submit for attempt in cluster.attempts)
    assert (first.output, first.cached_tokens) == ([], None)
    assert (second.output, second.cached_tokens) == (answer([5], 3), 4)
    assert cluster.begun_sequences == [first.id, second.id]
    assert first.id == second.id
    await engine.stop()


async def test_what_has_been_read_of_a_prompt_is_not_read_to_the_asker_again() -> None:
    finding = Finding(rows=2)
    reading = Reading(top_logprobs=1)

    def script(attempt: object) -> Told | None:
        if len(cluster.attempts) == 1:
            return Told([Delta(1, [], None, None, 0, finding=finding)], None)  # and no more
        return None

    cluster = ScriptedCluster(script)
    engine = await engine_on(cluster, Seen())
    asked = Order([1, 2, 3, 4], 2, [], Sampling(temperature=0.0), reading=reading)
    (stream,) = engine.submit([asked])
    await tokens_of(stream)
    assert cluster.attempts[1].submit.reading == reading.after(2, 4)
    await engine.stop()


async def test_a_replica_that_cannot_is_left_for_another() -> None:
    cluster = ScriptedCluster(lambda attempt: Unable("no room") if attempt.number == 0 else None)
    engine = await engine_on(cluster, Seen())
    (stream,) = engine.submit([order(1)])
    assert await tokens_of(stream) == answer([1], 8)
    await engine.stop()


async def test_nobody_goes_on_with_what_a_replica_finds_guilty() -> None:
    cluster = ScriptedCluster(lambda attempt: Fault("It ends engines."))
    engine = await engine_on(cluster, Seen())
    (stream,) = engine.submit([order(1)])
    with pytest.raises(InternalError, match="It ends engines") as failed:
        await tokens_of(stream)
    assert not failed.value.retryable
    assert len(cluster.attempts) == 1
    await engine.stop()


async def test_a_request_that_no_replica_gets_any_further_is_given_up() -> None:
    cluster, seen = ScriptedCluster(dies(2, *[0] * scale_out.MAX_FRUITLESS)), Seen()
    engine = await engine_on(cluster, seen)
    (stream,) = engine.submit([order(1)])
    with pytest.raises(EngineGone, match="any further"):
        await tokens_of(stream)
    assert len(cluster.attempts) == 1 + scale_out.MAX_FRUITLESS
    assert (engine.live, seen.ends) == (0, 1)
    await engine.stop()


async def test_a_replica_that_computes_otherwise_gets_nothing_to_say() -> None:
    cluster = ScriptedCluster()
    engine = await engine_on(cluster, Seen())
    cluster.fingerprint = "other weights"
    (stream,) = engine.submit([order(1)])
    with pytest.raises(EngineGone):
        await tokens_of(stream)
    assert not any(attempt.told for attempt in cluster.attempts)
    await engine.stop()


async def test_whoever_leaves_frees_the_replica() -> None:
    cluster, seen = ScriptedCluster(), Seen()
    engine = await engine_on(cluster, seen)
    (stream,) = engine.submit([order(1, max_tokens=10**9)])
    await anext(aiter(stream))
    stream.cancel()
    await engine.idle()
    await until(lambda: cluster.attempts[0].is_closed)
    assert seen.ends == 1
    await engine.stop()


async def test_whoever_leaves_at_once_leaves_nothing_behind() -> None:
    cluster, seen = ScriptedCluster(), Seen()
    engine = await engine_on(cluster, seen)
    (stream,) = engine.submit([order(1)])
    stream.cancel()
    await until(lambda: not engine._carrying)
    assert (engine.live, seen.ends, cluster.attempts) == (0, 1, [])
    await engine.stop()


async def test_the_queue_has_an_end_which_grows_with_the_replicas() -> None:
    cluster = ScriptedCluster()
    cluster.census_now = Census({}, 3, {})
    engine = await engine_on(cluster, Seen(), max_sequences=1)
    await until(lambda: engine._replicas == 3)
    streams = engine.submit([order(1, max_tokens=10**9)] * 5)
    with pytest.raises(Overloaded):
        engine.submit([order(1)])
    assert engine.live == len(streams)
    await engine.stop()


async def test_without_replicas_it_is_not_ready_and_takes_requests_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ScriptedCluster()
    cluster.census_now = Census({}, 0, {})
    engine = await engine_on(cluster, Seen())
    await until(lambda: not engine.is_up)
    engine.check()
    monkeypatch.setattr(scale_out, "_RESUME_WINDOW_S", 0.0)
    with pytest.raises(EngineGone, match="no replica"):
        engine.submit([order(1)])
    await engine.stop()


async def test_a_cluster_that_cannot_be_had_is_a_failure_in_one_line() -> None:
    cluster, seen = ScriptedCluster(), Seen()
    cluster.refusal = "--ray: nobody there"
    engine = ClusterEngine(cluster, EngineOptions(), 1, seen.listener())
    with pytest.raises(ModelLoading):
        engine.submit([order(1)])
    await engine.start()
    await until(lambda: engine.failure is not None)
    assert seen.failures == [cluster.refusal]
    with pytest.raises(EngineGone):
        engine.submit([order(1)])
    await engine.stop()


async def test_at_the_end_every_stream_has_an_error_and_the_replicas_go() -> None:
    cluster, seen = ScriptedCluster(), Seen()
    engine = await engine_on(cluster, seen)
    (stream,) = engine.submit([order(1, max_tokens=10**9)])
    await anext(aiter(stream))
    await engine.stop()
    with pytest.raises(EngineGone):
        await tokens_of(stream)
    assert (cluster.stops, seen.failures, engine.live) == (1, [], 0)
