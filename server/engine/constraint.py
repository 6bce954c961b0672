"""What may follow next where an answer has to follow a grammar."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import cached_property
from threading import Lock

from llguidance import LLMatcher, LLTokenizer

from server.engine.messages import ModelCard
from server.grammar.matching import matcher, vocabulary
from server.text.tokenizer import Tokenizer

_BUILDERS = 2  # a grammar that takes its time must not keep all others waiting
_KNOWN = 64
_PATIENCE_S = 0.02  # from the beginning of a step: mostly its masks are there long before the step wants them


class Constraint:
    """How far the output of one sequence has got in its grammar.

    Belongs to the thread of the loop; only the masks are computed in another. Where they are late, the step goes on
    without them, and until they are there nothing else may be called; all other calls wait for them.
    """

    def __init__(self, start: LLMatcher, output: Sequence[int], eos_ids: frozenset[int], workers: Executor) -> None:
        """`start` is the grammar before any token and stays as it is."""
        self._start = start
        self._output = list(output)
        self._eos_ids = eos_ids
        self._workers = workers
        self._matcher = self._replay()
        self._masks: Future[list[bytes]] | None = None
        self.is_complete = False  # nothing can follow but an end
        self.is_late = False  # the last step has not waited for its masks

    def accept(self, token: int) -> None:
        """A token of the output that does not end it."""
        self._settle()
        self._output.append(token)
        self._matcher.consume_token(token)
        self.is_complete = self._matcher.is_stopped() and not self._matcher.is_error()

    def forced(self, most: int) -> tuple[int, ...]:
        """Up to so many tokens as the only text that can follow is mostly written with."""
        self._settle()
        return self.admissible(self._matcher.compute_ff_tokens()[:most])

    def admissible(self, drafts: Sequence[int]) -> tuple[int, ...]:
        """The drafts up to the first that the grammar forbids or that ends the output."""
        self._settle()
        ends = (place for place, token in enumerate(drafts) if token in self._eos_ids)
        drafts = tuple(drafts[: next(ends, len(drafts))])
        return drafts[: self._matcher.validate_tokens(list(drafts))]

    def masks(self, drafts: Sequence[int]) -> Callable[[], list[bytes] | None]:
        """Begins to compute which tokens may come next, and which after each of the drafts, which are admissible.

        What is returned waits for them, but not long, since others wait as well: None is for nothing yet, and then the
        next call, without drafts, asks for the same. Bit `i % 8` of byte `i // 8` is set where token i is allowed; no
        bit is where the grammar has become too complex to be followed.
        """
        assert not (self.is_late and drafts), "where a mask is late, nothing can be said of drafts"
        if not self.is_late:
            self._settle()
            self._masks = self._workers.submit(self._compute, drafts)
        deadline = time.monotonic() + _PATIENCE_S
        return lambda: self._wait(deadline, 1 + len(drafts))

    def _wait(self, deadline: float, rows: int) -> list[bytes] | None:
        assert self._masks is not None, "nothing was begun"
        done, _ = wait([self._masks], max(deadline - time.monotonic(), 0.0))
        self.is_late = not done
        return self._masks.result()[:rows] if done else None

    def _compute(self, drafts: Sequence[int]) -> list[bytes]:
        masks = [self._mask()]
        for draft in drafts:
            self._matcher.consume_token(draft)
            masks.append(self._mask())
        if self._matcher.is_error():  # an error stays, and a draft may have led to it
            self._matcher = self._replay()
        else:
            self._matcher.rollback(len(drafts))
        return masks

    def _mask(self) -> bytes:
        mask = b"" if self._matcher.is_error() else self._matcher.compute_bitmask()
        return b"" if self._matcher.is_error() else mask

    def _replay(self) -> LLMatcher:
        here = self._start.deep_copy()
        here.consume_tokens(self._output)
        return here

    def _settle(self) -> None:
        if self._masks is not None:
            self._masks.result()


class Constraints:
    """Builds constraints, in threads: a grammar may take as long as many steps."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._builders = ThreadPoolExecutor(_BUILDERS, thread_name_prefix="grammar")
        self._workers = ThreadPoolExecutor(thread_name_prefix="mask")
        self._known: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def build(self, grammar: str, output: Sequence[int]) -> Future[Constraint]:
        """The constraint of a sequence that has this output so far."""
        return self._builders.submit(self._build, grammar, output)

    def _build(self, grammar: str, output: Sequence[int]) -> Constraint:
        return Constraint(self._start(grammar), output, frozenset(self._card.eos_ids), self._workers)

    def _start(self, grammar: str) -> LLMatcher:
        with self._lock:
            start = self._known.pop(grammar, None)
        start = start or matcher(self._tokens, grammar)
        with self._lock:
            self._known[grammar] = start
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        return start

    @cached_property
    def _tokens(self) -> LLTokenizer:
        return vocabulary(Tokenizer(self._card), self._card.eos_ids)
