"""What the API process and the engine process say to each other: typed, encoded with msgspec, framed by length."""

import signal
from typing import Literal

import msgspec

from model.batch import Finding, Logprobs, Reading, Sampling

STACKS_SIGNAL = signal.SIGUSR1  # the one thing said out of band: write the stacks of your threads to stderr

FinishReason = Literal["stop", "length", "error", "dead_end"]  # the last is an error that the request brings about


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Run a sequence: `prompt` is never empty and known to fit; `id` is the client's own and unique in its life.

    One that another engine had begun brings what that one said of it, and goes on from there.
    """

    id: int
    prompt: list[int]
    max_tokens: int  # with 0, the prompt is computed for what it tells itself
    ending_ids: list[int]  # choosing one of these ends the sequence with "stop"; the token itself is reported
    sampling: Sampling
    output: list[int] = []  # tokens already chosen, fewer than max_tokens and none of them an ending one
    cached_tokens: int | None = None  # what was reported with them
    adapter: str | None = None  # the digest of one that was loaded
    salt: str = ""  # sequences of another one share no KV block with it
    priority: int = 0  # the lowest starts first; of equals, the first to come
    reading: Reading | None = None  # what of the prompt is to be told, less what was


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Forget a sequence; unknown and finished ids are ignored, since a finish may cross a cancel on the way."""

    id: int


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Read an adapter's folder, beside the steps; the answer is AdapterLoaded or AdapterRefused with this id."""

    id: int
    folder: str


class DropAdapter(msgspec.Struct, frozen=True, tag=True):
    """Forget an adapter that no sequence has."""

    digest: str


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Asks for a Tick, so that an idle engine can be told from a hung one."""


ToEngine = Submit | Cancel | LoadAdapter | DropAdapter | Ping


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How far starting is. `total` is 0 where it cannot be known."""

    stage: str
    done: int
    total: int
    unit: str


class ModelCard(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What text and HTTP need to know of the model; sent as soon as the checkpoint's header is read."""

    name: str  # the id the model is served under unless the options name another
    family: str
    vocab_size: int  # rows of the embedding; token ids are below this
    dim: int  # numbers in a hidden state
    context_length: int  # tokens of prompt and output together that a sequence may reach
    tokenizer: str  # tokenizer.json, as the tokenizers library reads it
    chat_template: str | None  # Jinja2 source
    special_tokens: dict[str, str]  # "bos_token", "eos_token", ... -> text, for the chat template
    eos_ids: list[int]  # tokens that end an answer


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Loaded and warm: from here on the engine computes."""

    device: str
    dtype: str
    kv_dtype: str
    kernels: str  # what computes, by name and version
    is_exact: bool  # they promise the same bits whatever is computed beside a sequence
    weights: str  # a digest
    block_size: int  # tokens
    block_bytes: int
    total_blocks: int
    memory_plan: str  # the sum behind `total_blocks`, for people
    step_seconds: float  # what the largest step may take


class Recorded(msgspec.Struct, frozen=True, tag=True):
    """So many sizes of steps are replayed from now on, which took so long to record while nobody waited."""

    sizes: int
    seconds: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot go on; `reason` is one line for people. It exits next."""

    reason: str


class Delta(msgspec.Struct, frozen=True):
    """What one step added to one sequence."""

    id: int
    tokens: list[int]
    logprobs: list[Logprobs] | None  # one per token where they were asked for
    finish: FinishReason | None
    cached_tokens: int  # prompt tokens that came from the prefix cache
    error: str | None = None  # with finish "error" and "dead_end"
    finding: Finding | None = None  # what the step has read of the prompt, as far as it is to be told


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's state after a step; counters are totals since its start."""

    running: int
    waiting: int
    blocks_free: int
    blocks_cached: int
    blocks_used: int
    preemptions: int
    prefix_queries: int  # prompt tokens looked up in the prefix cache
    prefix_hits: int  # of those, found
    drafts_proposed: int  # tokens computed on the chance that they would be chosen
    drafts_accepted: int  # of those, chosen
    step_tokens: int  # computed in this step
    step_seconds: float
    invariant_violations: int


class Started(msgspec.Struct, frozen=True, tag=True):
    """These sequences are in a step for the first time. Sent before it, so that one that ends the engine is known."""

    ids: list[int]


class Step(msgspec.Struct, frozen=True, tag=True):
    """One message per step, however many sequences it moved."""

    deltas: list[Delta]
    stats: Stats


class AdapterLoaded(msgspec.Struct, frozen=True, tag=True):
    """From here on sequences may be submitted with it."""

    id: int
    digest: str  # of its weights


class AdapterRefused(msgspec.Struct, frozen=True, tag=True):
    """Its files cannot be read, or are of no use for this model; `reason` is one line for people."""

    id: int
    reason: str


class Tick(msgspec.Struct, frozen=True, tag=True):
    """The loop turns: the answer to a Ping."""


FromEngine = Progress | ModelCard | Ready | Recorded | Failed | Started | Step | AdapterLoaded | AdapterRefused | Tick
