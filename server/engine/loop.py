"""The engine process: loads a model, then takes orders, schedules, computes and reports, step by step."""

import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from model.adapters import read_adapter
from model.batch import Batch, StepResult
from model.checkpoints.errors import CheckpointError
from model.kv_cache import BLOCK_SIZE
from model.loading import OpenModel, Report, Request, load, open_model
from model.memory import MemoryPlan
from model.parallel import ALONE, RankLost, Ranks
from model.runner import Runner
from server.config import EngineOptions
from server.engine.admission import Admission
from server.engine.block_pool import BlockPool
from server.engine.computing import Computing
from server.engine.constraint import Constraints
from server.engine.drafting import DRAFTED_TOKENS
from server.engine.followers import Followers
from server.engine.messages import (
    STACKS_SIGNAL,
    AdapterLoaded,
    AdapterRefused,
    Cancel,
    Delta,
    DropAdapter,
    Failed,
    FromEngine,
    LoadAdapter,
    ModelCard,
    Ping,
    Progress,
    Ready,
    Started,
    Step,
    Submit,
    Tick,
    ToEngine,
)
from server.engine.recording import Recording
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence
from server.engine.wire import Inbox, frame

START_ERRORS = (CheckpointError, ValueError, OSError)  # what a model that cannot be run raises, in one line

_REPORT_EVERY_S = 0.1
_LEAVE_WITHIN_S = 2.0  # of the API process' end, whatever is being computed

Load = Callable[[OpenModel, MemoryPlan, Report], Runner]


class Loop:
    """One step after the other for as long as there is work; asleep in the inbox otherwise."""

    def __init__(
        self,
        connection: socket.socket,
        runner: Runner,
        scheduler: Scheduler,
        admission: Admission,
        check: bool,
        followers: Followers | None = None,
        overlap: bool = False,
    ) -> None:
        """With `overlap`, a step is told to the device while the one before it is computed, wherever it can be."""
        self.connection = connection
        self.followers = followers
        self.inbox: Inbox[ToEngine] = Inbox(connection, ToEngine)
        self.runner = runner
        self.scheduler = scheduler
        self.admission = admission
        self.check = check
        self.violations = 0
        self.overlap = overlap
        self.computing = Computing(runner, is_shared=bool(followers))
        self.recording = Recording(runner, self._say)
        self._ahead: Batch | None = None  # has begun already
        self._speaking = threading.Lock()
        self._reading = threading.Lock()  # adapters, one after the other

    def run(self) -> None:
        """Returns when the API process closes its end."""
        is_idle = True
        while True:
            try:
                orders = self._orders(is_idle)
            except EOFError:
                return
            for order in orders:
                self._obey(order)
            for sequence in self.admission.ready(wait_a_moment=is_idle):
                self.scheduler.add(sequence)
            is_idle = not self._step()
            if is_idle and any(isinstance(order, Cancel) for order in orders):
                self._report([], 0.0)  # the books have changed without a step

    def _orders(self, is_idle: bool) -> list[ToEngine]:
        """What has arrived. While nobody waits, the device records what will save time. Raises EOFError."""
        orders = self.inbox.take(wait=False)
        while is_idle and not orders and not self.admission:
            orders = self.inbox.take(wait=not self.recording.go_on())
        return orders

    def _obey(self, order: ToEngine) -> None:
        match order:
            case Submit(sampling=sampling):
                join = self.scheduler.add if sampling.grammar is None else self.admission.hold
                join(Sequence.of(order))
            case Cancel(id):
                self.admission.cancel(id)
                self.scheduler.cancel(id)
            case LoadAdapter():
                threading.Thread(target=self._load_adapter, args=[order], daemon=True).start()
            case DropAdapter(digest):
                self.runner.adapters.pop(digest, None)
            case Ping():
                self._say(Tick())

    def _load_adapter(self, order: LoadAdapter) -> None:
        """In a thread of its own, for it may take longer than a step may. No step reads what it adds before it is
        told of."""
        with self._reading:
            try:
                adapter = read_adapter(Path(order.folder), self.runner.transformer)
            except CheckpointError as error:
                self._say(AdapterRefused(order.id, f"{Path(error.path).name}: {error.reason}"))
            except Exception:
                traceback.print_exc()
                self._say(AdapterRefused(order.id, "reading it failed"))
            else:
                self.runner.adapters[adapter.digest] = adapter
                self._say(AdapterLoaded(order.id, adapter.digest))

    def _say(self, message: FromEngine) -> None:
        with self._speaking:
            _send(self.connection, message)

    def _step(self) -> bool:
        """One step, if any sequence is live."""
        start = time.monotonic()
        batch = self._ahead or self.scheduler.schedule()
        if batch is None:
            return False
        if batch is not self._ahead:
            self._announce(batch)
        deltas = self.scheduler.apply(self._overlapped(batch) if self.overlap else self._compute(batch))
        if self.check:
            self._check()
        self._report(deltas, time.monotonic() - start)
        return True

    def _announce(self, batch: Batch) -> None:
        if self.scheduler.started:
            self._say(Started(self.scheduler.started))
        if self.check:
            self._poison(batch)

    def _report(self, deltas: list[Delta], seconds: float) -> None:
        stats = self.scheduler.stats(seconds, self.violations)
        self._say(Step(deltas, stats))

    def _compute(self, batch: Batch) -> StepResult:
        if self.followers:
            self.followers.tell(batch)
        return self.computing.compute(batch)

    def _overlapped(self, batch: Batch) -> StepResult:
        """The same, and the next step begins before that is known, wherever it can."""
        has_begun = batch is self._ahead or self.computing.begin(batch)
        self._ahead = self._begin_ahead() if has_begun else None
        result = self.computing.finish() if has_begun else None
        if result is not None:
            return result
        self.scheduler.retract()
        self._ahead = None
        return self.computing.compute_apart(batch)

    def _begin_ahead(self) -> Batch | None:
        batch = self.scheduler.ahead()
        if batch is None:
            return None
        if self.check:
            self._poison(batch)
        if self.computing.begin(batch):
            return batch
        self.scheduler.retract()
        return None

    def _poison(self, batch: Batch) -> None:
        """Blocks that hold nothing valid yet: whoever reads one before it is written gets an error, not a token."""
        for chunk in batch.chunks:
            self.runner.cache.poison(chunk.blocks[-(-chunk.start // BLOCK_SIZE) :])

    def _check(self) -> None:
        violation = self.scheduler.check()
        if violation is not None:
            self.violations += 1
            print(f"headrace: the books of the KV cache are wrong: {violation}", file=sys.stderr)


class _Reporter:
    """Tells the API process how far loading is, a few times a second at most."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.last_stage = ""
        self.last_time = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == self.last_stage and now - self.last_time < _REPORT_EVERY_S and done != total:
            return
        self.last_stage, self.last_time = stage, now
        self.connection.sendall(frame(Progress(stage, done, total, "bytes")))


def open_for(options: EngineOptions, report: Report, ranks: Ranks = ALONE) -> OpenModel:
    """Finds the model that the options name and reads its header."""
    wanted = {field: getattr(options, field) for field in Request.__dataclass_fields__}
    return open_model(Request(**wanted), report, ranks)


def plan(options: EngineOptions, report: Report) -> str:
    """The memory plan, for people, from the header alone: of several ranks on this machine, the largest one's."""
    size = options.tensor_parallel
    places = [Ranks(rank, size, rank, size) for rank in range(size)]
    largest = max((open_for(options, report, place).plan() for place in places), key=lambda plan: plan.weights)
    return f"{largest}\non each of {size} ranks, at most" if size > 1 else str(largest)


def serve(connection: socket.socket, options: EngineOptions, load: Load) -> None:
    """Loads, says that it is ready, and works until the API process is gone."""
    report = _Reporter(connection)
    followers = Followers(options)
    model = open_for(options, report, followers.ranks)
    overlap = _overlaps(options, model)
    card = card_of(model)
    _send(connection, card)
    model = followers.gather(model, lambda reason: _send(connection, Failed(reason)))
    runner = load(model, model.plan(), report)
    memory = runner.memory
    assert memory is not None, "it is loaded by one"
    pool = BlockPool(memory.num_blocks, prefix_cache=options.prefix_cache)
    drafted_tokens = DRAFTED_TOKENS if options.speculation and not overlap else 0  # a draft follows what is known
    limits = Limits(options.max_sequences, options.step_tokens, drafted_tokens, model.config.context_rate)
    scheduler = Scheduler(limits, pool)
    _send(connection, _ready(model, memory, runner.largest_step_s))
    admission = Admission(Constraints(card))
    Loop(connection, runner, scheduler, admission, options.check_invariants, followers, overlap).run()
    followers.leave()


def _overlaps(options: EngineOptions, model: OpenModel) -> bool:
    """Raises ValueError where it is asked of ranks, which all have to know a step before it begins."""
    if options.tensor_parallel == 1:
        return options.overlap == "on" or (options.overlap == "auto" and model.kernels.streams.is_asynchronous)
    if options.overlap == "on":
        raise ValueError("overlap on: ranks that share a model compute one step after the other")
    return False


def _send(connection: socket.socket, message: FromEngine) -> None:
    connection.sendall(frame(message))


def card_of(model: OpenModel) -> ModelCard:
    text = model.tokenizer()
    return ModelCard(
        name=text.name,
        family=model.config.family,
        vocab_size=model.config.vocab_size,
        dim=model.config.dim,
        context_length=model.config.context_length,
        tokenizer=text.tokenizer_json,
        chat_template=text.chat_template,
        special_tokens=text.special_tokens,
        eos_ids=text.eos_ids,
    )


def _ready(model: OpenModel, memory: MemoryPlan, step_seconds: float) -> Ready:
    return Ready(
        device=str(model.kernels.device),
        dtype=str(model.kernels.dtype).removeprefix("torch."),
        kv_dtype=str(model.kv_dtype).removeprefix("torch."),
        kernels=model.kernels_name,
        is_exact=model.kernels.is_exact,
        weights=model.digest(),
        block_size=BLOCK_SIZE,
        block_bytes=memory.block,
        total_blocks=memory.num_blocks,
        memory_plan=str(memory),
        step_seconds=step_seconds,
    )


def _leave_with(connection: socket.socket) -> None:
    """Ends this process when the API process is gone: a long step must not keep an orphan, and the device, alive."""
    hang_up = select.poll()
    hang_up.register(connection, 0)  # POLLHUP is told unasked, and nothing else is wanted here
    hang_up.poll()
    time.sleep(_LEAVE_WITHIN_S)  # mostly the loop finds out first and returns
    os._exit(1)


def main(load: Load = load) -> int:
    """Runs on the socket whose number is the only argument; the options are the first message on it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a service: the API process decides
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    connection = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_leave_with, args=[connection], daemon=True).start()
    try:
        (options,) = Inbox[EngineOptions](connection, EngineOptions).take(wait=True)
        serve(connection, options, load)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the API process has gone in the midst of it
        return 0
    except START_ERRORS as error:
        _send(connection, Failed(" ".join(str(error).split())))
        return 1
    except RankLost as error:
        print(f"headrace: {error}", file=sys.stderr)
        os._exit(1)  # at once: what torch would end in order waits for the one that is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
