"""What bench/simulation.md says: predictions and how far they are from what was measured, from stored results."""

from collections.abc import Sequence

from bench.simulation.figures import TARGET, Figures
from bench.simulation.predict import GROUPS, SHARED, Prediction
from bench.simulation.step_time import Measured
from bench.simulation.validation import SCALE, Comparison
from bench.simulation.validation import TARGET as VALIDATION_TARGET
from server.bench.measure import Slo
from server.scale_out.routing import CROWD_TOKENS, LACKING_WEIGHT

COMPARED = {
    "TTFT p50, s": "ttft_p50",
    "TTFT p90, s": "ttft_p90",
    "TPOT p50, s": "tpot_p50",
    "output tok/s": "output_tokens_per_s",
    "goodput, requests/s": "goodput",
}


def document(
    measured: Measured,
    comparisons: Sequence[Comparison],
    by_replicas: Sequence[Prediction],
    by_rate: Sequence[Prediction],
    by_weight: Sequence[Prediction],
) -> str:
    """The page, in Markdown."""
    return f"""# What many replicas would do

Written by `make bench-simulation`.

{_assumptions(measured, by_replicas[0].scenario.requests)}

![Predictions against replicas and load](simulation.svg)

## By replicas, {by_replicas[0].scenario.rate:g} requests per second and replica

{_predictions(by_replicas, "replicas")}

## By load, {by_rate[0].scenario.replicas} replicas

{_predictions(by_rate, "rate")}

## By what a request in hand counts, {by_weight[0].scenario.replicas} replicas

Affinity adds {LACKING_WEIGHT} times what a replica lacks of a prompt, what it has still to read of those before it, and
so many tokens for each request in hand: {CROWD_TOKENS} by default (`CROWD_TOKENS`), or the number behind its name.
"Counting requests" leaves out what is to be read of others: then a long prompt weighs as much as a short one.

{_predictions(by_weight, "replicas")}

{_effort([*by_replicas, *by_rate, *by_weight])}

## The steps

{_steps(measured)}

## How far this is from what was measured

{_validation(comparisons)}
"""


def _assumptions(measured: Measured, requests: int) -> str:
    on = f"{measured.threads} thread of {measured.machine}"
    cache = f"{measured.kv_blocks:,} KV blocks ({measured.kv_memory:g} GiB)"
    return f"""Every replica is the real scheduler and block pool in virtual time, and the routers are those
of `server/scale_out/routing.py`. Only the time of a step comes from a formula, which was fitted to measured steps of
{measured.model}: {on}. A replica has {cache}.

- **Lengths** are those of 19,366 conversations with services of Azure (AzureLLMInferenceTrace_conv, November 2023,
  CC-BY; Patel et al., Splitwise, ISCA 2024): 1,155 tokens in and 211 out on average. `azure_conversations.csv` has them
  as 1,000 equally likely pairs: 40 bands of prompts, each cut into 25 by its answers, and the means of each piece.
- **Arrivals** are Poisson. Real ones come in bursts, which is worse.
- **Shared beginnings are assumed**: {SHARED:.0%} of each prompt is its group's text. That is the share of prompt blocks
  with which an earlier one of 12,031 requests began in Mooncake's conversation trace (Qin et al., FAST 2025). There are
  {GROUPS} groups for each replica, and the k-th most popular has a share that goes with 1/k.
- **Good** is {_target(TARGET)}.
- **Warm-up**: a replica gets {requests} requests; the first third fills queues and caches and is not counted.
  So where a queue grows without end, its times are those of the first minutes.
- **Left out** are drafts, adapters, grammars, ends but by length, faults, and the time of HTTP, texts and routing."""


KEYS = {"replicas": "replicas", "rate": "requests/s and replica"}


def _predictions(predictions: Sequence[Prediction], key: str) -> str:
    head = [KEYS[key], "router", "TTFT p50, s", "p90", "p99", "TPOT p50, ms", "good", "good/s", "from cache", "busy"]
    return _markdown([head, *(_row(one, key) for one in predictions)])


def _row(one: Prediction, key: str) -> list[str]:
    now, scenario = one.figures, one.scenario
    return [
        f"{getattr(scenario, key):g}",
        scenario.router,
        *(f"{seconds:.2f}" for seconds in (now.ttft_p50, now.ttft_p90, now.ttft_p99)),
        f"{now.tpot_p50 * 1000:.1f}",
        f"{now.good_share:.1%}",
        f"{now.goodput:.2f}",
        f"{now.cached_share:.1%}",
        f"{one.busy:.0%}",
    ]


def _effort(predictions: Sequence[Prediction]) -> str:
    requests, steps = sum(one.requests for one in predictions), sum(one.steps for one in predictions)
    seconds = sum(one.took_s for one in predictions)
    speed = f"{steps / seconds:,.0f} steps and {requests / seconds:.0f} requests in a second of a process"
    return f"All of it: {requests:,} requests in {steps:,} steps, {speed}."


def _steps(measured: Measured) -> str:
    time, quality = measured.time, measured.quality
    terms = [
        f"{time.base * 1e3:.2f} ms",
        f"{time.decoding * 1e3:.2f} ms for each sequence that decodes",
        f"{time.context * 1e6:.2f} µs for each position of its context",
        f"{time.prompt * 1e3:.2f} ms for each token of a prompt",
        f"{time.pairs * 1e6:.2f} µs for each position that such a token attends to",
    ]
    errors = f"median {quality.median_error:.1%}, p95 {quality.p95_error:.1%}, largest {quality.largest_error:.1%}"
    listed = "\n".join(f"- {term}" for term in terms)
    return f"""A step takes

{listed}

Fitted to {quality.steps} kinds of steps of 1 to 32 sequences and contexts up to 3,072 tokens: R² {quality.r2:.4f},
errors of a step: {errors}."""


def _validation(comparisons: Sequence[Comparison]) -> str:
    rows = [["replicas, router", *COMPARED, "good", "from cache"]]
    for one in comparisons:
        rows.append(_compared(f"{one.replicas}, {one.router}: measured", one.measured))
        rows.append(_compared("the same, simulated", one.simulated))
        points = [f"{100 * one.errors[name]:+.1f} points" for name in ("good_share", "cached_share")]
        rows.append(["error", *(f"{one.errors[name]:+.1%}" for name in COMPARED.values()), *points])
    requests = " and ".join(f"{count}" for count in sorted({one.requests for one in comparisons}))
    return f"""The same traffic, request for request, was replayed against `headrace serve --threads 1 --no-speculation`
once, and against two of it on one machine of two cores, routed by the same router in the load's client. Lengths are
those above times {SCALE:g}, so that {requests} requests fit into little more than a minute; good here is
{_target(VALIDATION_TARGET)}.

{_markdown(rows)}"""


def _compared(title: str, now: Figures) -> list[str]:
    values = (f"{getattr(now, name):.3g}" for name in COMPARED.values())
    return [title, *values, f"{now.good_share:.1%}", f"{now.cached_share:.1%}"]


def _target(target: Slo) -> str:
    return f"a first token within {target.ttft:g} s and {target.tpot:g} s for each further one"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])
