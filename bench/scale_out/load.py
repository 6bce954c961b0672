"""What each arrangement is asked, and which figures are taken from the answers."""

import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
import uvloop

from server.bench.client import Client
from server.bench.connection import Address
from server.bench.record import Record, Request

TIMEOUT_S = 300.0
USERS = 8
GROUPS, SHARED = 6, 256  # prompts begin in so many ways, with so many tokens each
OWN, ANSWER = 64, 64  # tokens
REQUESTS = 48


@dataclass(frozen=True, slots=True)
class Figures:
    """Times in seconds."""

    output_tokens_per_s: float
    ttft_p50: float
    ttft_p95: float
    itl_p50: float
    itl_p99: float
    longest_gap: float
    cached_share: float  # of the prompts' tokens
    failed: int
    requests: int


def questions(seed: int, count: int = REQUESTS, answer: int = ANSWER) -> list[Request]:
    """Another seed shares no prompt with this one."""
    draw = random.Random(seed)
    beginnings = [draw.choices(range(1000, 40000), k=SHARED) for _ in range(GROUPS)]
    prompts = [draw.choice(beginnings) + draw.choices(range(1000, 40000), k=OWN) for _ in range(count)]
    fields = {"max_tokens": answer, "temperature": 0.0, "ignore_eos": True, "stream": True}
    fields["stream_options"] = {"include_usage": True}
    return [Request("/v1/completions", msgspec.json.encode(fields | {"prompt": prompt}), answer) for prompt in prompts]


def ask(url: str, asked: Sequence[Request], meanwhile: Callable[[], Awaitable[None]] | None = None) -> list[Record]:
    """`USERS` ask at once, each its next question when the last is answered."""

    async def run() -> list[Record]:
        client, turn = Client(Address.parse(url), TIMEOUT_S), asyncio.Semaphore(USERS)

        async def one(request: Request) -> Record:
            async with turn:
                return await client.stream(request)

        answers = asyncio.gather(*map(one, asked))
        if meanwhile is not None:
            await meanwhile()
        return await answers

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def figures(records: Sequence[Record]) -> Figures:
    """Failed ones are counted, and in no other figure."""
    whole = [record for record in records if record.answered]
    gaps = [gap for record in whole for gap in record.gaps]
    ttfts = [record.ttft for record in whole]
    prompt = sum(record.prompt_tokens for record in whole)
    cached = sum(record.usage.cached or 0 for record in whole if record.usage is not None)
    seconds = max(record.end for record in whole) - min(record.start for record in whole)
    return Figures(
        output_tokens_per_s=sum(record.output_tokens for record in whole) / seconds,
        ttft_p50=statistics.median(ttfts),
        ttft_p95=_percentile(ttfts, 95),
        itl_p50=statistics.median(gaps),
        itl_p99=_percentile(gaps, 99),
        longest_gap=max(gaps),
        cached_share=cached / prompt,
        failed=len(records) - len(whole),
        requests=len(records),
    )


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
