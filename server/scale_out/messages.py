"""What a replica says to those that serve HTTP before it; what they say is the engine's own Submit."""

import msgspec

from server.engine.messages import Delta, ModelCard, Ready, Stats


class Description(msgspec.Struct, frozen=True, tag=True):
    """What a replica computes with."""

    card: ModelCard
    ready: Ready

    @property
    def fingerprint(self) -> str:
        """Replicas with the same one choose the same tokens."""
        ready = self.ready
        return f"{ready.weights} {ready.device} {ready.dtype} {ready.kv_dtype} {ready.kernels} {ready.is_exact}"


class Aboard(msgspec.Struct, frozen=True, tag=True):
    """The sequence is with this replica: the first word about each."""

    replica: str
    fingerprint: str


class Told(msgspec.Struct, frozen=True, tag=True):
    """What has come of the sequence since the last one."""

    deltas: list[Delta]
    prefill_s: float | None  # with its first token: what computing the prompt took


class Unable(msgspec.Struct, frozen=True, tag=True):
    """This replica does not go on with it; another may."""

    reason: str


class Fault(msgspec.Struct, frozen=True, tag=True):
    """The sequence itself is to blame: nobody should go on with it."""

    message: str


FromReplica = Aboard | Told | Unable | Fault


class Beginning(msgspec.Struct, frozen=True, tag="Submit"):
    """What a router reads of a Submit."""

    id: int
    prompt: list[int]
    adapter: str | None = None
    salt: str = ""


class Report(msgspec.Struct, frozen=True):
    """How a replica is doing, as Ray carries it to its routers."""

    is_up: bool
    stats: Stats | None
