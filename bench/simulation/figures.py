"""What is said of a run, simulated or measured: the same figures of the same records."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.bench.measure import Slo, percentile
from server.bench.record import Record

TARGET = Slo(ttft=5.0, tpot=0.1)  # what the alerts of deploy/ promise to the first token, and ten tokens a second
WARM_UP = 3  # the first of so many parts of the requests fills queues and caches, and is not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Times in seconds; rates are of all replicas together."""

    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    tpot_p50: float
    output_tokens_per_s: float
    good_share: float  # of the requests, those within the target
    goodput: float  # of those, how many a second
    cached_share: float  # of the prompts' tokens


def counted(records: Sequence[Record]) -> list[Record]:
    """Without the warm-up."""
    return [*records[len(records) // WARM_UP :]]


def figures(runs: Sequence[Sequence[Record]], target: Slo = TARGET) -> Figures:
    """Of runs that are alike; each in the order of arrival, without its warm-up."""
    records = [record for run in runs for record in run]
    ttft = sorted(record.ttft for record in records)
    tpot = sorted(record.tpot for record in records if record.tpot is not None)
    arriving_s = sum(run[-1].start - run[0].start for run in runs)
    good_share = sum(map(target.is_met_by, records)) / len(records)
    usages = [record.usage for record in records if record.usage]
    return Figures(
        ttft_p50=percentile(ttft, 50),
        ttft_p90=percentile(ttft, 90),
        ttft_p99=percentile(ttft, 99),
        tpot_p50=percentile(tpot, 50),
        output_tokens_per_s=sum(_output_rate(run) for run in runs) / len(runs),
        good_share=good_share,
        goodput=good_share * (len(records) - len(runs)) / arriving_s,
        cached_share=sum(usage.cached or 0 for usage in usages) / sum(usage.prompt for usage in usages),
    )


def _output_rate(run: Sequence[Record]) -> float:
    return sum(record.output_tokens for record in run) / (max(record.end for record in run) - run[0].start)
