"""What is known of the replicas, who gets which request, and what of it is exposed."""

import random

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from model.batch import Sampling
from server.engine.messages import Stats, Submit
from server.metrics import NOTHING, Metrics
from server.scale_out.engine import Census
from server.scale_out.fleet import Fleet, Member
from server.scale_out.loads import Load, Loads
from server.scale_out.messages import Report
from server.scale_out.series import ReplicaSeries

LONG = list(range(800))


def encoded(prompt: list[int], sequence: int = 1, **fields: str) -> bytes:
    submit = Submit(id=sequence, prompt=prompt, max_tokens=1, ending_ids=[], sampling=Sampling(), **fields)
    return msgspec.msgpack.encode(submit)


def fleet_of(*names: str) -> Fleet:
    fleet = Fleet()
    fleet.see({name: Member(0, None) for name in names})
    return fleet


def send(fleet: Fleet, request: str, submit: bytes) -> str:
    first = fleet.rank(request, submit)[0]
    fleet.routed(request, first)
    return first


def test_a_request_goes_where_its_beginning_went_and_is_counted_there() -> None:
    fleet = fleet_of("a", "b")
    first = send(fleet, "1", encoded(LONG))
    assert send(fleet, "2", encoded([*LONG, 5, 6])) == first
    other = send(fleet, "3", encoded(LONG, salt="another's"))
    assert other != first
    assert fleet.census().routed == {(first, "new"): 1, (first, "prefix"): 1, (other, "new"): 1}


def test_requests_in_hand_weigh_until_they_are_completed() -> None:
    fleet = fleet_of("a", "b")
    sent = [send(fleet, str(number), encoded([number] * 5)) for number in range(4)]
    assert sorted(sent) == ["a", "a", "b", "b"]
    for number, replica in enumerate(sent):
        if replica == "a":
            fleet.completed(str(number), replica)
    assert [send(fleet, f"next {number}", encoded([9] * 5)) for number in range(2)] == ["a", "a"]


def test_of_requests_that_come_together_each_weighs_on_the_next() -> None:
    fleet = fleet_of("a", "b")
    firsts = [fleet.rank(str(number), encoded([number] * 5))[0] for number in range(6)]
    assert sorted(firsts) == ["a", "a", "a", "b", "b", "b"]
    assert fleet.rank("again", encoded(LONG))[0] == fleet.rank("and again", encoded([*LONG, 5]))[0]


def test_who_has_given_up_waiting_weighs_no_more() -> None:
    fleet, waiting = fleet_of("a", "b"), {"1", "2"}
    (first, _) = fleet.rank("1", encoded([1] * 5), lambda: "1" in waiting)
    (second, _) = fleet.rank("2", encoded([2] * 5), lambda: "2" in waiting)
    waiting.remove("2")
    assert fleet.rank("3", encoded([3] * 5))[0] == second != first


def test_what_others_have_sent_weighs_too() -> None:
    fleet = Fleet()
    fleet.see({"a": Member(20, None), "b": Member(1, None)})
    assert fleet.rank("1", encoded([1])) == ["b", "a"]


def test_a_prompt_weighs_until_it_is_read() -> None:
    fleet = fleet_of("a", "b")
    long = send(fleet, "long", encoded(LONG, 1))
    short = send(fleet, "short", encoded([1] * 16, 2))
    assert send(fleet, "other", encoded([2] * 16, 3)) == short != long
    fleet.begun(1)
    assert send(fleet, "another", encoded([3] * 16, 4)) == long


def test_a_prompt_that_is_ranked_again_weighs_as_before() -> None:
    """Until somebody takes it, Serve asks again and again."""
    fleet = fleet_of("a", "b")
    for _ in range(3):
        first = fleet.rank("long", encoded(LONG, 1))[0]
    fleet.routed("long", first)
    others = [send(fleet, str(number), encoded([number] * 16, number)) for number in (2, 3)]
    assert first not in others


def test_what_others_have_sent_is_taken_to_be_like_what_we_have() -> None:
    def second(queued: int) -> str:
        fleet = Fleet()
        fleet.see({"a": Member(0, None), "b": Member(50, None)})
        assert send(fleet, "1", encoded(LONG, 1)) == "a"
        fleet.see({"a": Member(queued, None), "b": Member(10, None)})
        return send(fleet, "2", encoded([1] * 16, 2))

    assert (second(1), second(3)) == ("a", "b")


def test_a_sequence_that_lost_its_replica_weighs_on_the_next() -> None:
    """The first attempt may be heard to have ended after the second was sent."""
    fleet = fleet_of("a", "b")
    lost = send(fleet, "first attempt", encoded(LONG, 7))
    fleet.rank("second attempt", encoded(LONG, 7))
    (other,) = {"a", "b"} - {lost}
    fleet.routed("second attempt", other)
    fleet.completed("first attempt", lost)
    assert send(fleet, "1", encoded([1] * 16, 8)) == lost
    fleet.begun(7)
    fleet.completed("1", lost)
    fleet.completed("second attempt", other)
    assert {send(fleet, str(number), encoded([number] * 16, number)) for number in (9, 10)} == {"a", "b"}


def test_a_request_that_is_through_before_it_is_told_to_be_routed_weighs_nothing() -> None:
    """Of 1,000 answers of one token under Ray, 40 and 80 were."""
    fleet = fleet_of("a", "b")
    for number in range(9):
        first = fleet.rank(str(number), encoded([1] * 16))[0]
        fleet.completed(str(number), first)
        fleet.routed(str(number), first)
    assert fleet.census().routed == {("a", "new"): 1, ("a", "prefix"): 8}


def test_a_replica_without_room_is_not_the_one_that_takes_it() -> None:
    """That it is through with the request may be told before the next is asked, or after it has taken it."""
    fleet = fleet_of("a", "b")
    for number in "123":
        fleet.rank(number, encoded([1] * 5))
        fleet.completed(number, "a")
        fleet.rank(number, encoded([1] * 5))
        fleet.routed(number, "b")
        fleet.completed(number, "a")
    assert [send(fleet, f"next {number}", encoded([1] * 5)) for number in range(3)] == ["a", "a", "a"]


def test_loads_end_at_nothing_in_whichever_order_they_are_heard_of() -> None:
    loads, rng = Loads(), random.Random(1)
    for _ in range(100):
        for number in range(5):
            loads.sent(number, rng.choice("ab"), rng.randrange(1000))
        heard = [(each, number) for each in (loads.begun, loads.through) for number in range(5)]
        rng.shuffle(heard)
        left = 5
        for each, number in heard:
            each(number)
            left -= each == loads.through
            assert (loads.of("a") + loads.of("b")).requests == left
        assert (loads.of("a"), loads.of("b")) == (Load(), Load())


def test_what_a_replica_that_is_gone_has_in_hand_is_known_until_it_ends() -> None:
    loads = Loads()
    loads.sent("1", "a", 100)
    loads.keep({"b"})
    assert loads.of("a") == Load(1, 100)
    loads.through("1")
    loads.keep({"b"})
    assert loads.of("a") == Load()


def test_who_got_it_instead_of_the_first_had_less_to_do() -> None:
    fleet = fleet_of("a", "b")
    _, second = fleet.rank("1", encoded(LONG))
    fleet.routed("1", second)
    assert fleet.census().routed == {(second, "load"): 1}


def test_a_replica_whose_engine_is_away_gets_nothing_while_another_is_up() -> None:
    fleet = Fleet()
    away, up = Member(0, Report(is_up=False, stats=None)), Member(50, Report(is_up=True, stats=None))
    fleet.see({"a": away, "b": up})
    assert fleet.rank("1", encoded([1])) == ["b"]
    fleet.see({"a": away})
    assert fleet.rank("1", encoded([1])) == ["a"]


def test_what_was_never_ranked_is_of_no_interest() -> None:
    fleet = fleet_of("a")
    fleet.routed("description", "a")
    fleet.completed("description", "a")
    fleet.begun(1)
    assert fleet.rank("1", encoded([1])) == ["a"]
    assert fleet.census().routed == {}


def stats(running: int, hits: int) -> Stats:
    return msgspec.structs.replace(NOTHING, running=running, prefix_hits=hits, blocks_free=3, blocks_used=1)


def test_counters_do_not_fall_when_a_replica_goes() -> None:
    series = ReplicaSeries()
    both = series.take(Census({"a": stats(2, 10), "b": stats(1, 5)}, 2, {}))
    assert (both.running, both.prefix_hits, both.blocks_free) == (3, 15, 6)
    one = series.take(Census({"b": stats(1, 6)}, 1, {}))
    assert (one.running, one.prefix_hits, one.blocks_free) == (1, 16, 3)


def test_every_replica_has_its_series() -> None:
    metrics, series = Metrics(), ReplicaSeries()
    metrics.replicas(series)
    metrics.census(series.take(Census({"a": stats(2, 10), "b": stats(1, 5)}, 2, {("a", "prefix"): 3})))
    found = {
        (sample.name, sample.labels.get("replica", ""), sample.labels.get("why", "")): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }
    assert found["headrace_replicas", "", ""] == 2
    assert found["headrace_replica_requests_running", "a", ""] == 2
    assert found["headrace_replica_prefix_cache_hit_tokens_total", "b", ""] == 5
    assert found["headrace_replica_kv_cache_usage_ratio", "b", ""] == 0.25
    assert found["headrace_replica_requests_routed_total", "a", "prefix"] == 3
    assert found["headrace_replica_requests_routed_total", "a", "load"] == 0
    assert found["headrace_requests_running", "", ""] == 3
