"""Whether recorded steps, graphs on a card, say what computed ones say, to the last bit; and what they save."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.gpu_check.clock import Clock
from bench.gpu_check.loading import TOLD, Part, batch, loaded, opened, record_all
from bench.gpu_check.report import table
from bench.gpu_check.section import Failed, NotRun, Options
from model.batch import Batch
from model.kv_cache import BLOCK_SIZE
from model.runner import Runner
from server.bench.report import number

REPEATS, QUICK_REPEATS = 20, 1
# Sequences that decode, and the longest of their contexts: beside blocks' and splits' ends, beside sizes of graphs.
DECODES = ((1, 1), (1, 16), (1, 17), (1, 1024), (1, 1025), (1, 8192), (2, 512), (3, 512), (32, 512), (33, 1025))
DECODES += ((100, 512), (128, 1024), (192, 512))
QUICK_DECODES = ((1, 16), (3, 33))
PROMPT, BESIDE = Part(40, 100), 20  # rows of a prompt, beside so many that decode
HEAD = ["sequences", "rows", "filled up to", "longest context", "bits", "recorded, ms", "computed, ms"]


def check(options: Options) -> Iterator[str]:
    model = opened(options)
    clock = Clock(model.kernels.device, QUICK_REPEATS if options.quick else REPEATS)
    return findings(loaded(model, model.plan()), clock, options.quick)


def findings(runner: Runner, clock: Clock, is_quick: bool) -> Iterator[str]:
    """Raises NotRun where nothing is recorded, Failed where one bit differs or no step fits what is."""
    if runner.recording is None:
        raise NotRun(f"{runner.transformer.kernels.name} records nothing")
    began, count = time.perf_counter(), record_all(runner)
    yield f"Recorded for {count} sizes while nobody waited, in {time.perf_counter() - began:.1f} s."
    rows = [_compared(runner, clock, parts) for parts in all_steps(runner, is_quick)]
    yield table([HEAD, *rows])
    if differing := sum(row[4] == "differ" for row in rows):
        raise Failed(f"{differing} of {len(rows)} steps have other bits")
    if not any(row[4] == "equal" for row in rows):
        raise Failed("no step could be replayed")


def all_steps(runner: Runner, is_quick: bool) -> Iterator[list[Part]]:
    """Each sequence has blocks of its own."""
    longest, blocks = runner.transformer.config.context_length, runner.cache.num_blocks
    for count, context in QUICK_DECODES if is_quick else DECODES:
        if count <= blocks:
            most = min(context, longest, blocks // count * BLOCK_SIZE)
            yield [Part(1, most - 37 * place % most) for place in range(count)]
    if BESIDE + -(-PROMPT.context // BLOCK_SIZE) <= blocks and PROMPT.context <= longest:
        yield [PROMPT, *(Part(1, 1 + place % BLOCK_SIZE) for place in range(BESIDE))]


def _compared(runner: Runner, clock: Clock, parts: list[Part]) -> list[str]:
    """As HEAD says. A recording is replayed more than once: its memory is that of all others."""
    recording, given = runner.recording, batch(runner, parts, TOLD)
    assert recording is not None, "findings has looked"
    rows, longest = sum(part.rows for part in parts), max(part.context for part in parts)
    padded = recording.padded(rows, longest)
    shape = [str(len(parts)), str(rows), "" if padded is None else str(padded), str(longest)]
    if padded is None:
        return [*shape, "not recorded", "", number(_seconds(runner, clock, given) * 1000)]
    with _computing(runner):
        expected, computed_s = runner.run(given), _seconds(runner, clock, given)
    recorded_s = _seconds(runner, clock, given)
    bits = "equal" if runner.run(given) == expected else "differ"
    return [*shape, bits, number(recorded_s * 1000), number(computed_s * 1000)]


def _seconds(runner: Runner, clock: Clock, given: Batch) -> float:
    return clock.of_step(lambda: runner.run(given))


@contextmanager
def _computing(runner: Runner) -> Iterator[None]:
    """Every step is computed, as if nothing had been recorded."""
    recording, runner.recording = runner.recording, None
    try:
        yield
    finally:
        runner.recording = recording
