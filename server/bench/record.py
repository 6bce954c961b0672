"""What is posted, and what is known of it after it ended: when text came, what the server counted, what failed."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """A streaming completion, ready to be posted: encoded before the load starts, so that it costs nothing then."""

    path: str
    body: bytes
    output_tokens: int  # asked for


@dataclass(frozen=True, slots=True)
class Usage:
    """The server's own count of tokens; `cached` prompt tokens came from its prefix cache, None where it is silent."""

    prompt: int
    output: int
    cached: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed: `kind` is for counting ("http 503", "cut", ...), `message` for people."""

    kind: str
    message: str


@dataclass(slots=True)
class Record:
    """One request. All times are seconds of the same monotonic clock; `chunks` are the arrivals of text."""

    start: float  # handed to the client, before a connection is found or opened
    asked_tokens: int
    due: float | None = None  # when an open loop wanted it sent
    chunks: list[float] = field(default_factory=list)
    finish: float | None = None  # the finish reason arrived
    usage: Usage | None = None
    failure: Failure | None = None

    @property
    def answered(self) -> bool:
        """The answer came whole: only then do the times below mean anything."""
        return self.failure is None

    @property
    def end(self) -> float:
        """When the answer was complete: its last text or its finish reason, whichever came later."""
        return max([*self.chunks[-1:], *([] if self.finish is None else [self.finish])])

    @property
    def ttft(self) -> float:
        """Time to first token: the first text, or the finish reason of an answer without any text."""
        return (self.chunks[0] if self.chunks else self.end) - self.start

    @property
    def e2e(self) -> float:
        return self.end - self.start

    @property
    def output_tokens(self) -> int:
        """As the server counts; where it does not, a chunk is taken for a token."""
        return len(self.chunks) if self.usage is None else self.usage.output

    @property
    def prompt_tokens(self) -> int:
        return 0 if self.usage is None else self.usage.prompt

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None for answers of fewer than two tokens."""
        if self.output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies: the times between chunks, which are tokens only where a chunk holds one."""
        return [after - before for before, after in zip(self.chunks, self.chunks[1:], strict=False)]
