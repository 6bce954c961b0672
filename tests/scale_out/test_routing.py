"""Which replica takes a request."""

from collections.abc import Iterable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.scale_out.loads import Load
from server.scale_out.routing import BLOCK_TOKENS, CROWD_TOKENS, LACKING_WEIGHT, PrefixRouting, prefix_keys

LONG = list(range(40 * BLOCK_TOKENS))


def idle(*replicas: str) -> dict[str, Load]:
    return dict.fromkeys(replicas, Load())


def busy(**requests: int) -> dict[str, Load]:
    """Whose prompts are read."""
    return {replica: Load(count) for replica, count in requests.items()}


def ask(routing: PrefixRouting, prompt: list[int], loads: dict[str, Load]) -> str:
    """The replica that gets the request, as the router would have it."""
    keys = prefix_keys(prompt)
    first = routing.rank(keys, loads).replicas[0]
    routing.sent(keys, first)
    return first


def test_a_key_stands_for_every_token_before_its_end() -> None:
    keys = prefix_keys(LONG)
    assert len(keys) == 40
    assert prefix_keys(LONG[: 3 * BLOCK_TOKENS + 5]) == keys[:3]
    assert not set(prefix_keys([7, *LONG[1:]])) & set(keys)
    assert not set(prefix_keys(LONG, ("adapter", "salt"))) & set(keys)
    assert prefix_keys(LONG[: BLOCK_TOKENS - 1]) == []


def test_whoever_had_the_beginning_gets_what_follows() -> None:
    routing = PrefixRouting()
    first = ask(routing, LONG, idle("a", "b", "c"))
    for turn in range(3):
        ranking = routing.rank(prefix_keys(LONG + [turn] * 50), idle("a", "b", "c"))
        assert (ranking.replicas[0], ranking.why, ranking.held_tokens) == (first, "prefix", len(LONG))


def test_prompts_that_nobody_had_go_round() -> None:
    routing = PrefixRouting()
    asked = [ask(routing, [number] * BLOCK_TOKENS, idle("a", "b", "c")) for number in range(6)]
    assert sorted(asked) == ["a", "a", "b", "b", "c", "c"]
    assert routing.rank(prefix_keys([9] * BLOCK_TOKENS), idle("a")).why == "new"


def test_a_holder_is_left_where_waiting_costs_more_than_computing() -> None:
    routing = PrefixRouting()
    routing.sent(prefix_keys(LONG), "a")
    as_many = LACKING_WEIGHT * len(LONG) // CROWD_TOKENS
    assert routing.rank(prefix_keys(LONG), busy(a=as_many - 1, b=0)).replicas[0] == "a"
    left = routing.rank(prefix_keys(LONG), busy(a=as_many + 1, b=0))
    assert (left.replicas, left.why, left.held_tokens) == (["b", "a"], "load", 0)


def test_a_holder_is_left_where_waiting_for_what_others_want_read_costs_more_than_reading() -> None:
    routing, costs = PrefixRouting(), LACKING_WEIGHT * len(LONG)
    assert routing.sent(prefix_keys(LONG), "a") == len(LONG)
    assert routing.sent(prefix_keys(LONG), "a") == 0
    for unread_tokens, first in ((costs - 1, "a"), (costs + 1, "b")):
        loads = {"a": Load(2, unread_tokens), "b": Load(2, 0)}
        assert routing.rank(prefix_keys(LONG), loads).replicas[0] == first


def test_a_few_words_in_common_draw_nobody_to_a_busier_replica() -> None:
    """Every chat begins alike: that must not lead all of them to one replica."""
    routing = PrefixRouting()
    routing.sent(prefix_keys(LONG[: 2 * BLOCK_TOKENS]), "a")
    assert routing.rank(prefix_keys(LONG), busy(a=1, b=0)).replicas[0] == "b"


def test_a_beginning_that_two_hold_goes_to_the_one_with_less_to_do() -> None:
    routing = PrefixRouting()
    for replica in "ab":
        routing.sent(prefix_keys(LONG), replica)
    assert routing.rank(prefix_keys(LONG), busy(a=2, b=1, c=0)).replicas == ["b", "a", "c"]


def test_what_is_gone_holds_nothing() -> None:
    routing = PrefixRouting()
    routing.sent(prefix_keys(LONG), "a")
    routing.keep({"b"})
    assert routing.rank(prefix_keys(LONG), idle("a", "b")).why == "new"


def test_the_oldest_prompts_and_their_ends_are_forgotten_first() -> None:
    routing = PrefixRouting(remembered_blocks=45)
    for prompt in (LONG, [5] * 10 * BLOCK_TOKENS):
        routing.sent(prefix_keys(prompt), "a")
    assert routing.rank(prefix_keys(LONG), idle("a")).held_tokens == 35 * BLOCK_TOKENS
    assert routing.rank(prefix_keys([5] * 10 * BLOCK_TOKENS), idle("a")).held_tokens == 10 * BLOCK_TOKENS


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=60), st.data())
def test_every_replica_is_ranked_and_the_first_costs_least(
    asked: Iterable[tuple[int, int]], data: st.DataObject
) -> None:
    routing = PrefixRouting(remembered_blocks=30)
    load = st.builds(Load, st.integers(0, 50), st.integers(0, 5000))
    loads = data.draw(st.dictionaries(st.sampled_from("abcd"), load, min_size=1))
    for root, length in asked:
        keys = prefix_keys(LONG[: length * BLOCK_TOKENS], root)
        ranking = routing.rank(keys, loads)
        assert sorted(ranking.replicas) == sorted(loads)
        costs = [
            loads[each].requests * CROWD_TOKENS
            + loads[each].unread_tokens
            - routing._held_blocks(keys, each) * BLOCK_TOKENS * LACKING_WEIGHT
            for each in ranking.replicas
        ]
        assert costs == sorted(costs)
        routing.sent(keys, ranking.replicas[0])
