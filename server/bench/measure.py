"""How recorded requests become figures: pure arithmetic on event times, in seconds and tokens."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server.bench.record import Record

SLO_NAMES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in six numbers."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None where there are no values."""
        ordered = sorted(values)
        if not ordered:
            return None
        return cls(math.fsum(ordered) / len(ordered), *(percentile(ordered, share) for share in (50, 90, 95, 99)))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the ordered values lie, interpolated between the two nearest ranks."""
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a user would call good service, in seconds; None does not care."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """Reads "ttft=0.5,tpot=0.1"."""
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            if name not in SLO_NAMES or name in limits:
                raise ValueError(f"{part!r}: each of {', '.join(SLO_NAMES)} may be given once, as in ttft=0.5")
            try:
                limits[name] = float(value)
            except ValueError:
                raise ValueError(f"{part!r}: {value!r} is no number of seconds") from None
            if not 0 < limits[name] < math.inf:
                raise ValueError(f"{part!r}: a limit is above 0 seconds")
        return cls(**limits)

    def is_met_by(self, record: Record) -> bool:
        pairs = ((self.ttft, record.ttft), (self.tpot, record.tpot), (self.e2e, record.e2e))
        return all(limit is None or value is None or value <= limit for limit, value in pairs)


@dataclass(frozen=True, slots=True)
class Plateau:
    """From the first answer's end to the last request's start: while the load was as high as it was meant to be."""

    seconds: float
    output_tokens_per_s: float
    total_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """One run at one load. Latencies and rates are over the answered requests alone."""

    answered: int
    errors: dict[str, int]  # kind -> count
    error_examples: dict[str, str]  # kind -> the first message
    seconds: float  # first start to last end
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2e: Spread | None
    prompt_tokens: int
    cached_tokens: int | None  # prompt tokens from the server's prefix cache; None where no answer told
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    plateau: Plateau | None  # None where there were too few requests for one
    good_requests_per_s: float | None  # None without an SLO
    chunks: int
    without_usage: int  # answers whose tokens had to be counted by chunks
    impossible_counts: int  # answers with more chunks than tokens by usage
    short_answers: int  # answers with fewer tokens than were asked for
    lateness_p99: float | None  # open loop: how late the client itself was
    client_cpu: float  # cores' worth of time that the load generator used

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


def figures(records: Sequence[Record], client_cpu: float, slo: Slo | None = None) -> Figures:
    """Everything that is reported of one run."""
    answered = [record for record in records if record.answered]
    seconds = _seconds(records, answered)
    prompt_tokens = sum(record.prompt_tokens for record in answered)
    output_tokens = sum(record.output_tokens for record in answered)
    return Figures(
        answered=len(answered),
        errors=dict(Counter(record.failure.kind for record in records if record.failure)),
        error_examples={r.failure.kind: r.failure.message for r in reversed(records) if r.failure},
        seconds=seconds,
        ttft=Spread.of(record.ttft for record in answered),
        tpot=Spread.of(record.tpot for record in answered if record.tpot is not None),
        itl=Spread.of(gap for record in answered for gap in record.gaps),
        e2e=Spread.of(record.e2e for record in answered),
        prompt_tokens=prompt_tokens,
        cached_tokens=_cached_tokens(answered),
        output_tokens=output_tokens,
        output_tokens_per_s=_rate(output_tokens, seconds),
        total_tokens_per_s=_rate(prompt_tokens + output_tokens, seconds),
        requests_per_s=_rate(len(answered), seconds),
        plateau=plateau(answered),
        good_requests_per_s=_rate(sum(map(slo.is_met_by, answered)), seconds) if slo else None,
        chunks=sum(len(record.chunks) for record in answered),
        without_usage=sum(record.usage is None for record in answered),
        impossible_counts=sum(len(record.chunks) > record.output_tokens for record in answered),
        short_answers=sum(record.output_tokens < record.asked_tokens for record in answered),
        lateness_p99=lateness(records),
        client_cpu=client_cpu,
    )


def plateau(answered: Sequence[Record]) -> Plateau | None:
    """Throughput between the first end and the last start; None where that is less than a typical answer's time.

    A chunk in that window counts as its answer's tokens per chunk; a prompt counts where its first token falls.
    In a shorter window a few chunks more or less, as answers of one length end together, would be the whole figure.
    """
    begin = min((record.end for record in answered), default=0.0)
    end = max((record.start for record in answered), default=0.0)
    typical = Spread.of(record.e2e for record in answered)
    if typical is None or not 0 < typical.p50 <= end - begin:
        return None
    output = prompts = 0.0
    for record in answered:
        times = record.chunks or [record.end]
        output += sum(begin <= time < end for time in times) * record.output_tokens / len(times)
        prompts += record.prompt_tokens if begin <= times[0] < end else 0
    seconds = end - begin
    return Plateau(seconds, output / seconds, (output + prompts) / seconds)


def lateness(records: Sequence[Record]) -> float | None:
    """The 99th percentile of the client's own delay in an open loop."""
    delays = sorted(record.start - record.due for record in records if record.due is not None)
    return percentile(delays, 99) if delays else None


def _seconds(records: Sequence[Record], answered: Sequence[Record]) -> float:
    if not answered:
        return 0.0
    return max(record.end for record in answered) - min(record.start for record in records)


def _cached_tokens(answered: Sequence[Record]) -> int | None:
    told = [record.usage.cached for record in answered if record.usage and record.usage.cached is not None]
    return sum(told) if told else None


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
