"""Who may join the scheduler: every sequence at once, but those that follow a grammar when that is built."""

from concurrent.futures import FIRST_COMPLETED, Future, wait

from server.engine.constraint import Constraint, Constraints
from server.engine.sequence import Sequence

_GLANCE_S = 0.01  # how long to look at grammars before looking at orders again


class Admission:
    """Holds sequences until they are complete. None is kept waiting by another's grammar, running or new."""

    def __init__(self, constraints: Constraints) -> None:
        self._constraints = constraints
        self._held: dict[int, tuple[Sequence, Future[Constraint]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, sequence: Sequence) -> None:
        grammar = sequence.sampling.grammar
        assert grammar is not None, "there is nothing to wait for"
        output = sequence.tokens[sequence.prompt_length :]
        self._held[sequence.id] = sequence, self._constraints.build(grammar, output)

    def cancel(self, id: int) -> None:
        """Ignores ids that are not held."""
        self._held.pop(id, None)

    def ready(self, *, wait_a_moment: bool) -> list[Sequence]:
        """Those that may join now, in order of arrival."""
        if wait_a_moment:
            wait([building for _, building in self._held.values()], _GLANCE_S, FIRST_COMPLETED)
        done = [(sequence, building) for sequence, building in self._held.values() if building.done()]
        for sequence, building in done:
            del self._held[sequence.id]
            sequence.constraint = building.result()
        return [sequence for sequence, _ in done]
