"""How fast the CPU kernels are, shape by shape of the default model, next to what the machine can do at most.

python -m bench.kernels [--activations int8] [--level avx2] [--threads 1]
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import cycle

import gguf
import torch

from bench.kernels.peaks import Peaks, best_seconds, measure
from model.kernels.cpu import CpuKernels, load
from model.kernels.cpu.library import available_cores
from model.kernels.cpu.packing import Panels
from model.kernels.reference import AttentionShape, LayerCache, Span
from model.quantization import PackedTensor
from model.quantization.formats import Format

MATRICES = {  # of SmolLM2-135M: (columns, rows, format)
    "qkv": (576, 960, "Q4_1"),
    "out": (576, 576, "Q4_1"),
    "gate-up": (576, 3072, "Q4_1"),
    "down": (1536, 576, "Q4_1"),
    "head": (576, 49152, "Q8_0"),
}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 512)
CONTEXTS = (128, 1024, 4096, 8192)
HEADS, GROUPS, HEAD_DIM, BLOCK = 9, 3, 64, 16
COLD_BYTES = 64 << 20  # copies of a matrix are visited in turn, so that it comes from memory as in a model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    parser.add_argument("--activations", choices=["int16", "int8"], default="int16")
    parser.add_argument("--level", default="", help="instruction-set level: portable, avx2, avx512; default the best")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    kernels = load(options.activations, options.level, options.threads)
    if kernels is None:
        raise SystemExit(f"no kernels for level {options.level or '(any)'} on this machine")
    peaks = measure(options.threads)
    print(peaks)
    print(f"activations {options.activations}, threads {options.threads}, level {options.level or 'best'}\n")
    for name, (columns, rows, form) in MATRICES.items():
        product_table(kernels, peaks, options.threads, f"{name} {columns} x {rows} {form}", (columns, rows, form))
    attention_table(kernels)


def random_panels(kernels: CpuKernels, columns: int, rows: int, form: str) -> Panels:
    """Weights of the usual size: a scale too small to be a normal number would make products three times slower."""
    dense = torch.randn(rows, columns) * 0.05
    data = torch.from_numpy(gguf.quants.quantize(dense.numpy(), gguf.GGMLQuantizationType[form]))
    panels = kernels.prepare(PackedTensor(Format[form], (rows, columns), data))
    assert isinstance(panels, Panels)
    return panels


def copies(panels: Panels) -> Iterator[Panels]:
    count = 1 + COLD_BYTES // panels.nbytes
    return cycle([Panels(panels.kind, panels.shape, panels.data.clone()) for _ in range(count)])


def product_table(kernels: CpuKernels, peaks: Peaks, threads: int, title: str, matrix: tuple[int, int, str]) -> None:
    columns, rows, _ = matrix
    panels = random_panels(kernels, *matrix)
    cold = copies(panels)
    print(f"{title}\n{'M':>5} {'us':>9} {'GB/s':>7} {'of peak':>8} {'MAC/cycle/core':>15}")
    for batch in BATCHES:
        x_TD = torch.randn(batch, columns)
        calls = max(1, int(5e7 / (batch * rows * columns)))
        seconds = best_seconds(lambda: repeat(lambda: kernels.linear(x_TD, next(cold)), calls)) / calls  # noqa: B023
        rate = panels.nbytes / seconds / 1e9
        macs = batch * rows * columns / seconds / (peaks.clock_ghz * 1e9) / threads
        print(f"{batch:5} {seconds * 1e6:9.1f} {rate:7.1f} {rate / peaks.stream_gbs[-1]:8.0%} {macs:15.1f}")
    print()


def repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def attention_table(kernels: CpuKernels) -> None:
    """One layer of the default model: a decoded row, eight of them, and a chunk of prefill."""
    print(f"attention, {HEADS} heads on {GROUPS}, fp32 cache")
    print(f"{'context':>8} {'1 row us':>9} {'8 x 1 us':>9} {'256 us':>9}")
    shape = AttentionShape(HEAD_DIM**-0.5, None, None)
    for context in CONTEXTS:
        blocks = context // BLOCK
        cache = LayerCache(
            torch.randn(8 * blocks, GROUPS, HEAD_DIM, BLOCK), torch.randn(8 * blocks, GROUPS, BLOCK, HEAD_DIM)
        )
        tables = torch.randperm(8 * blocks).view(8, blocks)
        chunk = min(256, context)
        cases = [
            [Span(0, 1, context - 1, tables[0])],
            [Span(i, i + 1, context - 1, tables[i]) for i in range(8)],
            [Span(0, chunk, context - chunk, tables[0])],
        ]
        times = []
        for spans in cases:
            q_THd = torch.randn(spans[-1].last_row, HEADS, HEAD_DIM)
            times.append(best_seconds(lambda: kernels.attention(q_THd, cache, spans, shape)))  # noqa: B023
        print(f"{context:8} " + " ".join(f"{seconds * 1e6:9.1f}" for seconds in times))


if __name__ == "__main__":
    main()
