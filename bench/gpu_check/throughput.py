"""What users would see: the server under 1 to 256 streams at once, and vLLM's under the same, one after the other."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.gpu_check.report import table
from bench.gpu_check.section import Failed, Options
from bench.servers import Command, NoStart, running
from server.bench.report import number

HEADRACE = (sys.executable, "-P", "-m", "server.cli")
STREAMS, QUICK_STREAMS = (1, 4, 16, 64, 128, 256), (1, 2)
LENGTHS = ("--prompt-tokens", "256", "--output-tokens", "128")
QUICK_LENGTHS = ("--prompt-tokens", "16", "--output-tokens", "8", "--requests", "2", "--warmup", "1")
HEAD = ["streams", "output tok/s", "TTFT p50, ms", "TPOT p50, ms"]
VLLM_START_S = 1200.0  # it may fetch the model, and compiles


class Spread(msgspec.Struct):
    p50: float  # seconds


class Figures(msgspec.Struct):
    """Those of a load that the table shows."""

    output_tokens_per_s: float
    ttft: Spread | None
    tpot: Spread | None
    errors: dict[str, int]


class Run(msgspec.Struct):
    load: str
    figures: Figures


class Document(msgspec.Struct):
    """What `headrace bench --json` writes, as far as it is read here."""

    runs: list[Run]


def check(options: Options) -> Iterator[str]:
    yield f"`headrace bench {' '.join(_load(options))}`, each server alone on the device."
    own = measured(headrace(options), options)
    yield _table("Headrace", own)
    if failed := {kind: count for run in own for kind, count in run.figures.errors.items()}:
        raise Failed(f"requests failed: {failed}")
    command = vllm(options)
    if isinstance(command, str):
        yield command
        return
    try:
        yield _table("vLLM", measured(command, options))
    except (NoStart, Failed) as fault:
        yield f"vLLM was not measured: {fault}"


def headrace(options: Options) -> Command:
    serve = ("serve", "--model", options.model, "--device", options.device, "--max-sequences", str(options.sequences))
    calm = ("--log-level", "warning", "--drain-delay", "0", "--no-spare-engine")
    return Command((*HEADRACE, *serve, *calm), "/health/ready")


def vllm(options: Options) -> Command | str:
    """How to start it with the same model; or why not."""
    program = shutil.which(options.vllm or "vllm")
    if options.device == "cpu":
        return "vLLM is left out of a dry run."
    if program is None:
        if options.vllm is not None:
            raise Failed(f"--vllm {options.vllm}: there is no such program")
        return "vLLM is not installed (`--vllm PROGRAM` names one in another environment)."
    name, _, revision = options.model.removeprefix("hf:").partition("@")
    if not (options.model.startswith("hf:") or Path(options.model).is_dir()):
        return f"vLLM is left out: it is compared on safetensors, and {options.model} is a GGUF."
    which = ("--revision", revision) if revision else ()
    return Command((program, "serve", name, *which, "--max-num-seqs", str(options.sequences)), "/health", VLLM_START_S)


def measured(command: Command, options: Options) -> list[Run]:
    """Raises NoStart, or Failed if the load generator had no answer."""
    with tempfile.TemporaryDirectory() as folder:
        log, results = Path(folder) / "log", Path(folder) / "results.json"
        with running(command, log) as server:
            bench = [*HEADRACE, "bench", "--url", server.url, *_load(options), "--json", str(results)]
            run = subprocess.run(bench, capture_output=True, text=True, check=False)
        if not results.is_file():
            raise Failed((run.stderr.strip() or run.stdout.strip() or "it said nothing").splitlines()[-1])
        return msgspec.json.decode(results.read_bytes(), type=Document).runs


def _load(options: Options) -> tuple[str, ...]:
    streams = ",".join(map(str, QUICK_STREAMS if options.quick else STREAMS))
    return ("--concurrency", streams, *(QUICK_LENGTHS if options.quick else LENGTHS))


def _table(name: str, runs: list[Run]) -> str:
    return f"{name}:\n\n" + table([HEAD, *map(_row, runs)])


def _row(run: Run) -> list[str]:
    figures = run.figures
    latencies = [None if spread is None else spread.p50 * 1000 for spread in (figures.ttft, figures.tpot)]
    return [run.load, number(figures.output_tokens_per_s), *map(number, latencies)]
