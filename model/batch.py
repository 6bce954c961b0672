"""What crosses between scheduling and computing: plain data, and the only file that both sides know."""

from dataclasses import dataclass, field

GREEDY = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a request chooses its next token. The defaults change nothing: they sample the model's own distribution.

    A draw depends on `seed` and the token's position only, never on the batch (see `model/sampling.py`).
    """

    temperature: float = 1.0  # GREEDY takes the most likely token
    top_p: float = 1.0  # keep the smallest set of likeliest tokens that holds this probability
    top_k: int = 0  # keep this many of the likeliest tokens; 0 keeps all
    min_p: float = 0.0  # keep tokens at least this likely relative to the likeliest
    repetition_penalty: float = 1.0  # divides (multiplies) positive (negative) logits of tokens in prompt or output
    presence_penalty: float = 0.0  # subtracted once from the logits of tokens in the output
    frequency_penalty: float = 0.0  # subtracted per occurrence in the output
    logit_bias: dict[int, float] = field(default_factory=dict)  # added to the logits of these tokens
    min_tokens: int = 0  # the output's first so many tokens are none of `ending_ids`
    ending_ids: tuple[int, ...] = ()  # the tokens that would end the request
    seed: int = 0
    top_logprobs: int | None = None  # alternatives to report beside the chosen token's logprob; None reports neither


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part `tokens[start:stop]` of one sequence, to be computed in this step.

    `tokens` is the scheduler's own list of all that is known of the sequence: the model reads it and never writes.
    `blocks[p // block_size]` is the KV block of position p; every position below `start` is already in the cache.
    With `sampling` the chunk reaches the end of what is known, and the step chooses the token at position `stop`.
    """

    tokens: list[int]
    start: int
    stop: int
    blocks: list[int]
    prompt_length: int
    sampling: Sampling | None

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything that one step computes. Chunks of prefill and decode mix freely; their order has no meaning."""

    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of the model's own distribution, before penalties, bias, temperature and truncation."""

    chosen: float
    top: list[tuple[int, float]]  # (token, logprob), likeliest first; the chosen one's entry is bit-equal to `chosen`


@dataclass(frozen=True, slots=True)
class Sample:
    """The token chosen for one chunk."""

    token: int
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """One entry per chunk of the batch: the sample, None where none was wanted, or the error that befell the row."""

    samples: list[Sample | str | None]
