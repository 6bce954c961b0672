"""What `--no-exact` gives and takes: steps by cuBLAS and FlashAttention beside the same steps by our kernels."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.gpu_check.clock import Clock
from bench.gpu_check.loading import STEP_TOKENS, TOLD, Part, batch, loaded, opened
from bench.gpu_check.report import table
from bench.gpu_check.section import Failed, NotRun, Options
from model.batch import Sample, StepResult
from server.bench.report import number

REPEATS = 10
LONG = 512
# Each reads what those before it have stored: prompts, what goes on from them, one that begins anew.
STEPS = (
    ("prompts", [Part(256, 256), Part(17, 17)]),
    ("decode", [Part(1, 256), Part(1, 17)]),
    ("prompt", [Part(STEP_TOKENS, LONG)]),
    ("decode", [Part(1, LONG)]),
)
MOST = 1.0  # of a token's log probability; rounding in bf16 makes some hundredths
HEAD = ["step", "rows", "log probabilities differ by", "same tokens", "ours, ms", "libraries, ms"]


@dataclass(frozen=True, slots=True)
class Answers:
    """To STEPS, in order."""

    kernels: str
    results: list[StepResult]
    seconds: list[float]


def check(options: Options) -> Iterator[str]:
    if options.device == "cpu":
        raise NotRun("no-exact is for cards")
    ours = answers(options, exact=True)
    gc.collect()  # of the model: the other needs its memory
    return findings(ours, answers(options, exact=False))


def answers(options: Options, exact: bool) -> Answers:
    model = opened(options, exact=exact)
    model.kernels.streams.free_unused()
    runner, clock = loaded(model, model.plan()), Clock(model.kernels.device, REPEATS)
    results, seconds = [], []
    for _, parts in STEPS:
        given = batch(runner, parts, TOLD)
        results.append(runner.run(given))
        seconds.append(clock.of_step(lambda given=given: runner.run(given)))
    return Answers(model.kernels_name, results, seconds)


def findings(ours: Answers, theirs: Answers) -> Iterator[str]:
    """Raises Failed where they differ by more than rounding can explain."""
    yield f"Ours: `{ours.kernels}`; libraries: `{theirs.kernels}`."
    pairs = [_pairs(*results) for results in zip(ours.results, theirs.results, strict=True)]
    gaps = [largest_gap(of_step) for of_step in pairs]
    same = [sum(own.token == other.token for own, other in of_step) for of_step in pairs]
    rows = [
        [name, str(sum(part.rows for part in parts)), f"{gap:.4f}", f"{equal} of {len(parts)}"]
        for (name, parts), gap, equal in zip(STEPS, gaps, same, strict=True)
    ]
    times = zip(rows, ours.seconds, theirs.seconds, strict=True)
    yield table([HEAD, *([*row, number(own_s * 1000), number(other_s * 1000)] for row, own_s, other_s in times)])
    if not all(gap <= MOST for gap in gaps):
        raise Failed(f"log probabilities differ by more than {MOST:g}")


def largest_gap(pairs: list[tuple[Sample, Sample]]) -> float:
    """Over the likeliest tokens that both tell of."""
    gaps = [0.0]
    for own, other in pairs:
        tops = [dict(sample.logprobs.top) for sample in (own, other) if sample.logprobs]
        assert len(tops) == 2, "they were asked for"
        shared = [abs(value - tops[1][token]) for token, value in tops[0].items() if token in tops[1]]
        gaps += shared or [float("inf")]
    return float(torch.tensor(gaps).max())  # which is not a number if one of them is not


def _pairs(one: StepResult, other: StepResult) -> list[tuple[Sample, Sample]]:
    return list(zip(_samples(one), _samples(other), strict=True))


def _samples(result: StepResult) -> list[Sample]:
    """Raises Failed where a chunk has none."""
    for samples in result.samples:
        if isinstance(samples, str):
            raise Failed(samples)
    return [samples[0] for samples in result.samples if not isinstance(samples, str)]
