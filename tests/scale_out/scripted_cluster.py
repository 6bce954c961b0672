"""Replicas whose model is arithmetic on the tokens so far, and which die and refuse as a test says."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import msgspec

from model.batch import Sampling
from server.config import EngineOptions
from server.engine.messages import Delta, ModelCard, Ready, Submit
from server.engine.streams import Order
from server.scale_out.engine import Census, ClusterEngine, ClusterError, ClusterListener, ReplicaLost
from server.scale_out.messages import Aboard, Description, FromReplica, Told

CARD = ModelCard(
    name="arithmetic",
    family="none",
    vocab_size=1000,
    dim=8,
    context_length=256,
    tokenizer="",
    chat_template=None,
    special_tokens={},
    eos_ids=[],
)
READY = Ready(
    device="cpu",
    dtype="float32",
    kv_dtype="float32",
    kernels="none",
    is_exact=True,
    weights="w",
    block_size=16,
    block_bytes=1,
    total_blocks=100,
    memory_plan="",
    step_seconds=0.0,
)
DESCRIPTION = Description(CARD, READY)


def next_token(tokens: list[int]) -> int:
    return (31 * sum(tokens) + 7 * tokens[-1] + len(tokens)) % 1000


def answer(prompt: list[int], max_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def order(*prompt: int, max_tokens: int = 8) -> Order:
    return Order(list(prompt), max_tokens, [], Sampling(temperature=0.0))


class ScriptedCluster:
    """Each attempt at a sequence is one replica's, which says what `script` makes of it before each token."""

    def __init__(self, script: Callable[["Attempt"], FromReplica | None] = lambda attempt: None) -> None:
        self.script = script
        self.attempts: list[Attempt] = []
        self.fingerprint = DESCRIPTION.fingerprint
        self.census_now = Census({}, 2, {})
        self.refusal: str | None = None
        self.begun_sequences: list[int] = []
        self.stops = 0

    async def start(self) -> Description:
        if self.refusal is not None:
            raise ClusterError(self.refusal)
        return DESCRIPTION

    async def generate(self, submit: bytes) -> AsyncGenerator[bytes, None]:
        attempt = Attempt(len(self.attempts), msgspec.msgpack.decode(submit, type=Submit))
        self.attempts.append(attempt)
        try:
            yield msgspec.msgpack.encode(Aboard(f"replica-{attempt.number}", self.fingerprint))
            tokens = attempt.submit.prompt + attempt.submit.output
            while attempt.told < attempt.left:
                await asyncio.sleep(0)
                said = self.script(attempt)
                if said is not None:
                    yield msgspec.msgpack.encode(said)
                    return
                tokens.append(next_token(tokens))
                attempt.told += 1
                finish = "length" if attempt.told == attempt.left else None
                delta = Delta(7, tokens[-1:], None, finish, attempt.submit.cached_tokens or 4)
                yield msgspec.msgpack.encode(Told([delta], 0.0 if attempt.told == 1 else None))
        finally:
            attempt.is_closed = True

    def begun(self, sequence: int) -> None:
        self.begun_sequences.append(sequence)

    async def census(self) -> Census:
        return self.census_now

    async def restart(self) -> None:
        raise ClusterError("not here")

    async def stop(self) -> None:
        self.stops += 1


class Attempt:
    """What one replica has of one sequence, and how far it is."""

    def __init__(self, number: int, submit: Submit) -> None:
        self.number = number
        self.submit = submit
        self.told = 0
        self.is_closed = False

    @property
    def left(self) -> int:
        return self.submit.max_tokens - len(self.submit.output)


def dies(*after: int) -> Callable[[Attempt], None]:
    """The first replicas die after so many tokens each; those that follow live."""

    def script(attempt: Attempt) -> None:
        if attempt.number < len(after) and attempt.told == after[attempt.number]:
            raise ReplicaLost("it died")

    return script


class Seen:
    """What a listener has heard."""

    def __init__(self) -> None:
        self.moves = 0
        self.ends = 0
        self.failures: list[str] = []
        self.is_ready = asyncio.Event()

    def listener(self) -> ClusterListener:
        return ClusterListener(
            on_ready=lambda _: self.is_ready.set(),
            on_end=lambda _: setattr(self, "ends", self.ends + 1),
            on_move=lambda: setattr(self, "moves", self.moves + 1),
            on_failure=self.failures.append,
        )


async def engine_on(cluster: ScriptedCluster, seen: Seen, **options: int) -> ClusterEngine:
    """One that is ready."""
    engine = ClusterEngine(cluster, EngineOptions(**options), 2, seen.listener())
    await engine.start()
    await seen.is_ready.wait()
    return engine


async def until(is_true: Callable[[], bool]) -> None:
    while not is_true():  # noqa: ASYNC110 - what is waited for is nobody's event
        await asyncio.sleep(0)
