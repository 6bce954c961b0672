"""How near steps and kernels come to what the device does in a copy of memory and in a product of matrices."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.gpu_check.clock import Clock
from bench.gpu_check.hot_kernels import Kernel, hot_kernels
from bench.gpu_check.loading import STEP_TOKENS, Part, batch, loaded, opened, record_all
from bench.gpu_check.report import table
from bench.gpu_check.section import Options
from bench.gpu_check.work import Steps, Work
from model.kv_cache import BLOCK_SIZE
from model.loading import OpenModel
from model.runner import Runner
from server.bench.report import number

DECODES, QUICK_DECODES = (1, 8, 32, 64, 128, 256), (1, 8)
CONTEXT, LONG = 512, 8192  # tokens
REPEATS, QUICK_REPEATS = 30, 3
COPIED_BYTES, QUICK_COPIED_BYTES = 1 << 30, 1 << 26
SIDE, QUICK_SIDE = 8192, 512  # of the square matrices
HEAD = ["", "rows", "context", "ms", "GB/s", "of the copy", "TFLOP/s", "of the product"]
MEANING = """\
Bytes of a step are the weights as they lie on the device and the keys and values that are seen or written; those of a
kernel alone hold what comes in and goes out, too. A step's time is the host's and the device's, from the batch to the
chosen tokens, replayed where there is a recording; a kernel's is the device's alone, on weights that are not in its
second-level cache. The larger of a row's two shares says how near it is to its bound."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """What the device did in this very run, per second."""

    bytes: float
    flops: float

    def row(self, name: str, rows: int, context: int | None, work: Work, seconds: float) -> list[str]:
        """As HEAD says."""
        moved, computed = work.bytes / seconds, work.flops / seconds
        return [
            *(name, str(rows), "" if context is None else str(context), number(seconds * 1000)),
            *(number(moved / 1e9), f"{moved / self.bytes:.0%}"),
            *((number(computed / 1e12), f"{computed / self.flops:.0%}") if computed else ("", "")),
        ]


def check(options: Options) -> Iterator[str]:
    model = opened(options)
    clock = Clock(model.kernels.device, QUICK_REPEATS if options.quick else REPEATS)
    return findings(model, clock, options.quick)


@torch.inference_mode()
def findings(model: OpenModel, clock: Clock, is_quick: bool) -> Iterator[str]:
    """What the device does at most, then the steps, then the kernels."""
    peaks, measured_as = measure(clock, model.kernels.dtype, is_quick)
    yield measured_as
    runner, steps = loaded(model, model.plan()), Steps(model)
    record_all(runner)
    yield table([HEAD, *(_step(runner, steps, clock, peaks, *step) for step in all_steps(runner, is_quick))])
    kernels = hot_kernels(model, runner, is_quick)
    yield table([HEAD, *(_kernel(kernel, clock, peaks) for kernel in kernels)])
    yield MEANING


def measure(clock: Clock, dtype: torch.dtype, is_quick: bool) -> tuple[Peaks, str]:
    """The peaks, and how they were had."""
    size, side = (QUICK_COPIED_BYTES, QUICK_SIDE) if is_quick else (COPIED_BYTES, SIDE)
    source, target = torch.zeros(2, size, dtype=torch.uint8, device=clock.device)
    copy_s = clock.of_kernel(lambda: target.copy_(source))
    left, right = torch.randn(2, side, side, device=clock.device).to(dtype)
    product_s = clock.of_kernel(lambda: left @ right)
    peaks = Peaks(2 * size / copy_s, 2 * side**3 / product_s)
    said = f"A copy of {size >> 20} MiB moved {number(peaks.bytes / 1e9)} GB/s, read and written; "
    return peaks, said + f"a {side}-cubed product in {dtype} did {number(peaks.flops / 1e12)} TFLOP/s."


def all_steps(runner: Runner, is_quick: bool) -> Iterator[tuple[str, list[Part]]]:
    """Decodes of so many sequences, each with blocks of its own while there are any; prompts, early and late."""
    longest, blocks = runner.transformer.config.context_length, runner.cache.num_blocks
    for count in QUICK_DECODES if is_quick else DECODES:
        context = min(CONTEXT, longest, max(blocks // count, 1) * BLOCK_SIZE)
        yield "decode", [Part(1, context)] * count
    rows = min(STEP_TOKENS, longest, blocks * BLOCK_SIZE)
    for context in dict.fromkeys((rows, min(LONG, longest, blocks * BLOCK_SIZE))):
        yield "prompt", [Part(rows, context)]


def _step(runner: Runner, steps: Steps, clock: Clock, peaks: Peaks, name: str, parts: list[Part]) -> list[str]:
    given = batch(runner, parts)
    seconds = clock.of_step(lambda: runner.run(given))
    return peaks.row(name, sum(part.rows for part in parts), parts[0].context, steps.work(parts), seconds)


def _kernel(kernel: Kernel, clock: Clock, peaks: Peaks) -> list[str]:
    return peaks.row(kernel.name, kernel.rows, kernel.context, kernel.work, clock.of_kernel(kernel.run))
