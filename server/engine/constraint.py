"""What may follow next where an answer has to follow a grammar."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cached_property
from threading import Lock

from llguidance import LLMatcher, LLTokenizer

from server.engine.messages import ModelCard
from server.grammar.matching import matcher, vocabulary
from server.text.tokenizer import Tokenizer

_BUILDERS = 2  # a grammar that takes its time must not keep all others waiting
_KNOWN = 64


class Constraint:
    """How far the output of one sequence has got in its grammar.

    Belongs to the thread of the loop; only the masks are computed in another, and every call waits for those.
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

    def masks(self, drafts: Sequence[int]) -> Callable[[], list[bytes]]:
        """Begins to compute which tokens may come next, and which after each of the drafts, which are admissible.

        What is returned waits for them: bit `i % 8` of byte `i // 8` is set where token i is allowed. No bit is where
        the grammar has become too complex to be followed.
        """
        self._settle()
        self._masks = self._workers.submit(self._compute, drafts)
        return self._masks.result

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
