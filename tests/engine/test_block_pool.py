"""Are blocks found by exactly what they hold, reused in the right order, and accounted for at all times?"""

import pytest

from model.batch import Sampling
from server.engine.block_pool import BlockPool
from server.engine.sequence import Sequence

SIZE = 4


def sequence(tokens: list[int], id: int = 0, **root: str) -> Sequence:
    return Sequence(
        id=id,
        tokens=list(tokens),
        prompt_length=len(tokens),
        max_tokens=100,
        ending_ids=frozenset(),
        sampling=Sampling(),
        **root,
    )


def start(pool: BlockPool, tokens: list[int], id: int = 0) -> Sequence:
    """A sequence with its cached prefix and blocks for the rest, of which nothing is computed yet."""
    started = sequence(tokens, id)
    pool.share(started, pool.find(started))
    assert pool.extend(started)
    return started


def compute(pool: BlockPool, tokens: list[int], id: int = 0) -> Sequence:
    computed = start(pool, tokens, id)
    computed.computed = len(tokens)
    pool.commit(computed)
    return computed


def leave_behind(pool: BlockPool, tokens: list[int]) -> None:
    pool.release(compute(pool, tokens))


def hit(pool: BlockPool, tokens: list[int], **root: str) -> int:
    """Tokens that the cache has of these."""
    return len(pool.find(sequence(tokens, **root)).blocks) * SIZE


A, B, C, D = ([letter] * SIZE for letter in range(1, 5))  # contents of a block each


def test_every_block_is_free_cached_or_used() -> None:
    pool = BlockPool(8, SIZE)
    assert (pool.free, pool.cached, pool.used) == (8, 0, 0)
    computed = compute(pool, [*A, *B, 9])
    assert (pool.free, pool.cached, pool.used) == (5, 0, 3)
    pool.release(computed)
    assert (pool.free, pool.cached, pool.used) == (6, 2, 0)  # the block that is not full cannot be found
    assert (computed.blocks, computed.contents, computed.computed) == ([], [], 0)


def test_a_sequence_gets_all_its_blocks_or_none() -> None:
    pool = BlockPool(3, SIZE)
    greedy = sequence([0] * (3 * SIZE + 1))
    assert not pool.extend(greedy)
    assert (greedy.blocks, pool.free) == ([], 3)
    greedy.tokens.pop()
    assert pool.extend(greedy)
    assert sorted(greedy.blocks) == [0, 1, 2]


def test_a_prefix_is_found_block_by_block_up_to_the_first_difference() -> None:
    pool = BlockPool(8, SIZE)
    leave_behind(pool, [*A, *B, *C])
    assert hit(pool, [*A, *B, *C, 9]) == 12
    assert hit(pool, [*A, *B, *D, 9]) == 8
    assert hit(pool, [*A, *B, *C[:-1], 9, 9]) == 8
    assert hit(pool, [*B, *C, 9]) == 0


def test_equal_blocks_after_different_beginnings_are_different_contents() -> None:
    pool = BlockPool(8, SIZE)
    leave_behind(pool, [*A, *C])
    leave_behind(pool, [*B, *D])
    assert hit(pool, [*B, *C, 9]) == SIZE


def test_what_one_root_has_computed_no_other_finds() -> None:
    pool = BlockPool(16, SIZE)
    roots: list[dict[str, str]] = [{}, {"salt": "x"}, {"adapter": "x"}, {"adapter": "y"}, {"adapter": "x", "salt": "x"}]
    for place, root in enumerate(roots):
        computed = sequence([*A, *B], **root)
        assert pool.extend(computed)
        computed.computed = len(computed.tokens)
        pool.commit(computed)
        pool.release(computed)
        assert [hit(pool, [*A, *B, 9], **other) for other in roots] == [
            8 if later <= place else 0 for later in range(len(roots))
        ]
    assert pool.check([]) is None


def test_a_full_hit_leaves_a_token_to_compute() -> None:
    pool = BlockPool(8, SIZE)
    leave_behind(pool, [*A, *B])
    assert hit(pool, [*A, *B]) == SIZE
    assert hit(pool, [*A, *B, 9]) == 2 * SIZE


def test_only_full_blocks_that_are_computed_can_be_found() -> None:
    pool = BlockPool(8, SIZE)
    started = start(pool, [*A, *B, *C])
    for computed, found in [(0, 0), (SIZE - 1, 0), (SIZE, SIZE), (2 * SIZE + 1, 2 * SIZE)]:
        started.computed = computed
        pool.commit(started)
        assert hit(pool, [*A, *B, *C, 9]) == found


def test_sequences_share_the_blocks_of_a_common_prefix() -> None:
    pool = BlockPool(8, SIZE)
    first = compute(pool, [*A, *B, 9], id=1)
    second = compute(pool, [*A, *B, 8], id=2)
    assert second.blocks[:2] == first.blocks[:2]
    assert pool.used == 4
    pool.release(first)
    assert hit(pool, [*A, *B, 7]) == 2 * SIZE
    assert (pool.check([second]), pool.used) == (None, 3)


def test_the_same_content_computed_twice_is_listed_once_and_the_chain_goes_on() -> None:
    pool = BlockPool(8, SIZE)
    first, second = start(pool, [*A, *B], id=1), start(pool, [*A, *B, *C], id=2)
    for twin in (first, second):
        twin.computed = len(twin.tokens)
        pool.commit(twin)
    assert second.contents[:2] == first.contents
    assert set(first.blocks).isdisjoint(second.blocks)
    pool.release(second)
    assert (pool.free, pool.cached) == (5, 1)  # only C is its own; A and B are found in the first one's blocks
    assert hit(pool, [*A, *B, *C, 9]) == 3 * SIZE
    assert pool.check([first]) is None


def test_free_blocks_are_reused_last_freed_first_and_before_any_cached_one() -> None:
    pool = BlockPool(8, SIZE)
    leave_behind(pool, [*A, 9])  # A's block stays cached, the other is freed
    again = start(pool, [*B, 9])
    assert again.blocks == [1, 2]
    assert pool.cached == 1


def test_the_least_recently_used_is_evicted_first() -> None:
    pool = BlockPool(3, SIZE)
    for content in (A, B, C):
        leave_behind(pool, content)
    pool.release(start(pool, [*A, 9]))  # uses A again, and takes the room of B
    assert [hit(pool, [*content, 9]) for content in (A, B, C)] == [SIZE, 0, SIZE]


def test_looking_a_prefix_up_does_not_use_it() -> None:
    pool = BlockPool(2, SIZE)
    leave_behind(pool, A)
    leave_behind(pool, B)
    hit(pool, [*A, 9])
    start(pool, C)
    assert [hit(pool, [*content, 9]) for content in (A, B)] == [0, SIZE]


def test_the_tail_of_a_text_is_evicted_before_its_head() -> None:
    pool = BlockPool(3, SIZE)
    leave_behind(pool, [*A, *B, *C])
    start(pool, D)
    assert hit(pool, [*A, *B, *C, 9]) == 2 * SIZE


def test_what_hung_from_an_evicted_block_is_not_found_again_even_when_its_parent_is_computed_anew() -> None:
    pool = BlockPool(4, SIZE)
    first, second = start(pool, A, id=1), start(pool, [*A, *B], id=2)
    for twin in (first, second):
        twin.computed = len(twin.tokens)
        pool.commit(twin)  # the second one's B hangs from the first one's A
    pool.release(first)
    filler = start(pool, [*C, *D[:1]])  # evicts A, while B is in use
    pool.release(second)
    pool.release(filler)
    leave_behind(pool, A)
    assert hit(pool, [*A, *B, 9]) == SIZE
    assert pool.check([]) is None


def test_forgotten_blocks_are_not_found_and_are_free_once_all_holders_are_gone() -> None:
    pool = BlockPool(8, SIZE)
    failed, sharer = compute(pool, [*A, *B], id=1), compute(pool, [*A, 9], id=2)
    pool.forget(failed)
    pool.release(failed)
    assert hit(pool, [*A, *B, 9]) == 0
    assert pool.check([sharer]) is None
    pool.release(sharer)
    assert pool.free == 8


def test_without_a_prefix_cache_nothing_is_ever_found() -> None:
    pool = BlockPool(8, SIZE, prefix_cache=False)
    leave_behind(pool, [*A, *B])
    assert hit(pool, [*A, *B, 9]) == 0
    assert (pool.free, pool.cached) == (8, 0)


def test_the_cost_of_a_start_is_what_it_takes_from_the_available_blocks() -> None:
    pool = BlockPool(8, SIZE)
    compute(pool, [*A, 9])
    leave_behind(pool, [*A, *B])
    newcomer = sequence([*A, *B, *C, 9])  # A is in use, B is cached, C and the rest are new
    prefix = pool.find(newcomer)
    cost, available = pool.cost(newcomer, prefix), pool.available
    pool.share(newcomer, prefix)
    assert pool.extend(newcomer)
    assert (cost, pool.available) == (3, available - 3)


def test_releasing_twice_is_refused() -> None:
    pool = BlockPool(8, SIZE)
    computed = compute(pool, A)
    blocks = list(computed.blocks)
    pool.release(computed)
    computed.blocks = blocks
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(computed)


def test_the_check_names_what_is_wrong() -> None:
    pool = BlockPool(8, SIZE)
    leave_behind(pool, [*D, 9])
    computed = compute(pool, [*A, *B, 9])
    assert pool.check([computed]) is None
    assert "but the sequences hold" in str(pool.check([]))

    computed.contents.append(99)
    assert "3 blocks committed, but 9 tokens computed" in str(pool.check([computed]))
    computed.contents.pop()

    computed.contents[0], right = 99, computed.contents[0]
    assert "which it is not" in str(pool.check([computed]))
    computed.contents[0] = right

    pool._free.append(pool._free[0])
    assert "is not 8" in str(pool.check([computed]))
    pool._free[-2:] = [pool._free[0]]
    assert "overlap" in str(pool.check([computed]))
