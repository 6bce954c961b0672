"""What is known of every live sequence: enough to go on with it in another engine, and whether it may have killed this.

A sequence that was on board at two ends of an engine in a row, without getting anywhere in between, is a suspect.
Suspects are tried: each runs alone until it has survived some tokens. The one whose trial ends the engine is guilty.
"""

import itertools
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace

from server.engine.messages import Delta, Submit
from server.engine.streams import Order, TokenStream

SUSPECT_AFTER = 2  # ends of an engine
SURVIVAL_TOKENS = 2  # so many tokens after an end, a sequence is taken to be innocent of it


@dataclass(slots=True, eq=False)
class Entry:
    """One live sequence: what was ordered, what has come of it, and how it fares with engines."""

    order: Order
    stream: TokenStream
    output: list[int] = field(default_factory=list)
    cached_tokens: int | None = None  # known with the first delta
    run: int | None = None  # the id by which the present engine has it; a new one each time it is submitted
    is_aboard: bool = False  # the present engine has had it in a step
    survived: int = 0  # tokens since it was last submitted
    ends: int = 0  # of engines in a row that had it on board while it did not get anywhere

    def submit(self) -> Submit:
        assert self.run is not None, "it has no id yet"
        order = self.order
        return Submit(
            id=self.run,
            prompt=order.prompt,
            max_tokens=order.max_tokens,
            ending_ids=order.ending_ids,
            sampling=order.sampling,
            priority=order.priority,
            output=self.output,
            cached_tokens=self.cached_tokens,
            adapter=order.adapter,
            salt=order.salt,
            reading=order.reading,
        )

    def hear(self, delta: Delta) -> None:
        """What the engine has told need not be told again by the next one."""
        self.output += delta.tokens
        self.survived += len(delta.tokens)
        if delta.error is None and self.cached_tokens is None:
            self.cached_tokens = delta.cached_tokens
        if delta.finding is not None and self.order.reading is not None:
            left = self.order.reading.after(delta.finding.rows, len(self.order.prompt))
            self.order = replace(self.order, reading=left)


class Journal:
    """Every live sequence, in order of arrival."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}  # by the stream's id
        self._runs: dict[int, Entry] = {}  # by the engine's
        self._run_ids = itertools.count(1)
        self._held: dict[int, Entry] = {}  # not with the engine, by the stream's id
        self._suspects: list[Entry] = []  # the first one is on trial

    def __len__(self) -> int:
        return len(self._entries)

    def uses(self, adapter: str) -> bool:
        return any(entry.order.adapter == adapter for entry in self._entries.values())

    def lacking(self, adapters: Container[object]) -> list[Entry]:
        """Those whose adapter is none of these."""
        entries = self._entries.values()
        return [entry for entry in entries if entry.order.adapter and entry.order.adapter not in adapters]

    def beyond(self, longest: int) -> list[Entry]:
        """Those that may become longer than so many tokens."""
        entries = self._entries.values()
        return [entry for entry in entries if len(entry.order.prompt) + entry.order.max_tokens > longest]

    @property
    def streams(self) -> list[TokenStream]:
        return [entry.stream for entry in self._entries.values()]

    def add(self, order: Order, stream: TokenStream) -> None:
        entry = Entry(order, stream, list(order.begun), order.cached_tokens)
        self._entries[stream.id] = self._held[stream.id] = entry

    def due(self) -> list[Entry]:
        """Those to submit now: all that are held, or while there are suspects the one on trial."""
        due = [self._held[id] for id in sorted(self._held)]
        if self._suspects:
            due = [entry for entry in due if entry is self._suspects[0]]
        for entry in due:
            del self._held[entry.stream.id]
            entry.run = next(self._run_ids)
            entry.survived = 0
            self._runs[entry.run] = entry
        return due

    def start(self, runs: Iterable[int]) -> list[Entry]:
        """The engine is about to compute these for the first time."""
        started = [self._runs[run] for run in runs if run in self._runs]
        for entry in started:
            entry.is_aboard = True
        return started

    def record(self, delta: Delta) -> Entry | None:
        """Whose it is; None for a sequence that was cancelled while this was on its way."""
        entry = self._runs.get(delta.id)
        if entry is None:
            return None
        entry.hear(delta)
        if delta.finish is not None:
            self.remove(entry.stream.id)
        return entry

    def remove(self, id: int) -> Entry | None:
        """Forgets a sequence by its stream's id; None where it is not live. The engine is for the caller to tell."""
        entry = self._entries.pop(id, None)
        if entry is None:
            return None
        self._held.pop(id, None)
        if entry.run is not None:
            del self._runs[entry.run]
        if entry in self._suspects:
            self._suspects.remove(entry)
        return entry

    def acquit(self) -> int | None:
        """Ends the trial of a sequence that has survived: its id with the engine, to be cancelled there; else None.

        It waits until all are tried, because only who is alone with the engine can be told to be guilty.
        """
        entry = self._suspects[0] if self._suspects else None
        if entry is None or entry.run is None or entry.survived < SURVIVAL_TOKENS:
            return None
        self._suspects.pop(0)
        run, entry.run = entry.run, None
        del self._runs[run]
        entry.ends = 0
        self._held[entry.stream.id] = entry
        return run

    def lose_engine(self) -> list[Entry]:
        """The engine has ended: all are held again. Returns those found guilty of it, which are no longer live."""
        aboard = [entry for entry in self._runs.values() if entry.is_aboard]
        on_board = aboard or list(self._runs.values())  # before any step: reading the orders may be what ended it
        guilty = [entry for entry in on_board if entry in self._suspects[:1] and entry.survived < SURVIVAL_TOKENS]
        if on_board:
            self._count_ends(on_board)
        for entry in guilty:
            self.remove(entry.stream.id)
        self._held = dict(self._entries)
        self._runs = {}
        for entry in self._held.values():
            entry.run, entry.is_aboard = None, False
        self._suspects = [entry for entry in self._held.values() if entry.ends >= SUSPECT_AFTER]
        return guilty

    def _count_ends(self, on_board: list[Entry]) -> None:
        """Who was on board may be the cause; who was not is none, whatever it was suspected of."""
        for entry in self._entries.values():
            if entry not in on_board:
                entry.ends = 0
            else:
                entry.ends = 1 if entry.survived >= SURVIVAL_TOKENS else entry.ends + 1
