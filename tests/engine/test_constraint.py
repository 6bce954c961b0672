"""Where an answer is in its grammar: what may follow, whatever was drafted; who waits for a grammar, and who not."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from driving import SIZE
from llguidance import LLMatcher
from support import printable_card, wait_until

from model.batch import Sample, Sampling, StepResult
from server.engine.admission import Admission
from server.engine.block_pool import BlockPool
from server.engine.constraint import Constraint, Constraints
from server.engine.messages import Submit
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence

END = 95
ANSWERS = LLMatcher.grammar_from_regex(r"the answer is (yes|no|(no )+never)")


def ids(text: str) -> list[int]:
    return [ord(character) - 32 for character in text]


def tokens_of(mask: bytes) -> set[int]:
    return {token for token in range(8 * len(mask)) if mask[token // 8] >> token % 8 & 1}


@pytest.fixture(scope="module")
def constraints() -> Constraints:
    return Constraints(printable_card())


def constraint(constraints: Constraints, grammar: str = ANSWERS, output: str = "") -> Constraint:
    return constraints.build(grammar, ids(output)).result()


def test_a_mask_says_what_may_follow_the_output(constraints: Constraints) -> None:
    for output, may_follow in [("", "t"), ("the answer is ", "yn"), ("the answer is no", " "), ("the answer", " ")]:
        (mask,) = constraint(constraints, output=output).masks(())()
        assert tokens_of(mask) - {END} == set(ids(may_follow))
        assert (END in tokens_of(mask)) == output.endswith("no")


def test_masks_after_drafts_are_those_of_the_output_that_they_would_be(constraints: Constraints) -> None:
    """And leave no trace: accepting none, some or all of them comes to the same as without."""
    start, text = "the answer is ", "no no never"
    plain = [constraint(constraints, output=start + text[:length]).masks(())()[0] for length in range(len(text) + 1)]
    for accepted in range(len(text)):
        drafted = constraint(constraints, output=start)
        assert drafted.masks(tuple(ids(text)))() == plain
        for token in ids(text[:accepted]):
            drafted.accept(token)
        assert drafted.masks(())() == [plain[accepted]]


def test_drafts_are_cut_where_the_grammar_forbids_them_or_ends(constraints: Constraints) -> None:
    asked = constraint(constraints, output="the answer is ")
    assert asked.admissible(ids("no no!")) == tuple(ids("no no"))
    assert asked.admissible(ids("maybe")) == ()
    assert asked.admissible([*ids("no"), END, *ids(" no")]) == tuple(ids("no"))
    assert asked.admissible(()) == ()


def test_what_can_only_follow_is_proposed(constraints: Constraints) -> None:
    asked = constraint(constraints)
    assert asked.forced(100) == tuple(ids("the answer is "))
    assert asked.forced(3) == tuple(ids("the"))
    for token in ids("the answer is "):
        asked.accept(token)
    assert asked.forced(100) == ()


def test_an_answer_is_complete_where_nothing_can_follow(constraints: Constraints) -> None:
    asked = constraint(constraints, output="the answer is ")
    done = [asked.accept(token) or asked.is_complete for token in ids("no never")]
    assert done == [False] * 7 + [True]


def test_a_grammar_too_complex_to_follow_allows_nothing_and_a_draft_that_led_there_is_forgotten(
    constraints: Constraints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(self: Any, drafts: tuple[int, ...]) -> list[bytes]:
        self._matcher.consume_token(ids("x")[0])  # no such thing: the matcher is in error from here on
        return plain(self, ())

    asked = constraint(constraints, output="the ")
    plain = Constraint._compute
    monkeypatch.setattr(Constraint, "_compute", give_up)
    assert asked.masks(())() == [b""]
    monkeypatch.undo()
    assert tokens_of(asked.masks(())()[0]) == set(ids("a"))


def sequence(id: int, grammar: str | None, output: str = "") -> Sequence:
    sampling = Sampling(grammar=grammar, ending_ids=(END,))
    return Sequence.of(Submit(id, [1, 2, 3], 40, [END], sampling, output=ids(output)))


def test_forced_text_is_drafted_and_an_answer_that_is_complete_ends(constraints: Constraints) -> None:
    scheduler = Scheduler(Limits(8, 100, 8), BlockPool(64, SIZE))
    bound = sequence(1, ANSWERS, "the ans")
    bound.constraint = constraint(constraints, output="the ans")
    scheduler.add(bound)
    batch = scheduler.schedule()
    assert batch is not None
    assert bound.propose(6, 0.5) == tuple(ids("wer is"))
    assert batch.chunks[0].masks is not None
    assert len(batch.chunks[0].masks()) == 1 + len(batch.chunks[0].drafts)


def test_where_a_mask_is_late_the_others_go_on_and_its_own_sequence_chooses_when_it_is_there(
    constraints: Constraints, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(Limits(8, 100, 8), BlockPool(64, SIZE))
    bound, other = sequence(1, ANSWERS), sequence(2, None)
    bound.constraint = constraint(constraints)
    for each in (bound, other):
        scheduler.add(each)
    released, compute = threading.Event(), Constraint._compute

    def hold(self: Constraint, drafts: tuple[int, ...]) -> list[bytes]:
        released.wait()
        return compute(self, drafts)

    monkeypatch.setattr(Constraint, "_compute", hold)
    for step in range(1, 4):
        masks = told(scheduler)
        assert (masks, bound.pending, other.output_length) == (None, 1, step)
    released.set()
    wait_until(lambda: bool(bound.constraint and bound.constraint._masks and bound.constraint._masks.done()))
    masks = told(scheduler)
    assert masks is not None
    assert tokens_of(masks[0]) == set(ids("t"))
    assert (bound.tokens[-1], other.output_length) == (ids("t")[0], 4)


def told(scheduler: Scheduler) -> list[bytes] | None:
    """Closes a step, in which the first sequence chooses "t" if its masks are there, and the others anything."""
    batch = scheduler.schedule()
    assert batch is not None
    assert batch.chunks[0].masks is not None
    masks = batch.chunks[0].masks()
    samples = [Sample(ids("t")[0])] if masks else []
    scheduler.apply(StepResult([samples, *([Sample(9)] for _ in batch.chunks[1:])]))
    assert scheduler.check() is None
    return masks


class Held:
    """Builders that build nothing until they are told to."""

    def __init__(self, constraints: Constraints) -> None:
        self.released = threading.Event()
        self._constraints = constraints
        self._threads = ThreadPoolExecutor(1)

    def build(self, grammar: str, output: list[int]) -> Any:
        def build_later() -> Constraint:
            self.released.wait()
            return self._constraints.build(grammar, output).result()

        return self._threads.submit(build_later)


@pytest.fixture
def held(constraints: Constraints) -> Iterator[Held]:
    held = Held(constraints)
    yield held
    held.released.set()
    held._threads.shutdown()


def test_a_grammar_that_is_being_built_keeps_nobody_waiting_but_its_own(held: Held) -> None:
    admission = Admission(held)  # type: ignore[arg-type]
    for id in (1, 2):
        admission.hold(sequence(id, ANSWERS))
    assert admission.ready(wait_a_moment=True) == []
    admission.cancel(1)
    admission.cancel(7)
    assert len(admission) == 1
    held.released.set()
    ready: list[Sequence] = []
    wait_until(lambda: bool(ready.extend(admission.ready(wait_a_moment=True)) or ready))
    assert [(each.id, each.constraint is None) for each in ready] == [(2, False)]
    assert not admission
    assert admission.ready(wait_a_moment=False) == []
