"""What a person with a card runs to see what no machine without one can show: one command, one report.

sections:
  environment   the card, its driver, torch, Triton, Headrace
  resources     registers, spills and shared memory of every Triton kernel, compiled for the card
  parity        every kernel against the reference, and its bits in any batch and in a hundred runs
  libraries     cuBLAS and FlashAttention (`--no-exact`) beside our kernels
  graphs        recorded steps beside computed ones, to the last bit
  verify        `headrace verify`: whole answers in any company
  memory        what `headrace plan` foretells beside what the device reports
  roofline      what steps and kernels move and compute in a second, beside a copy and a matrix product
  throughput    the server under 1 to 256 streams, beside vLLM's where it is installed

Each runs in a process of its own, and the report is printed whatever becomes of them. Stop everything else on the
card first. Exit status: 0 if no section failed, 1 if one did, 2 without a card or for a wrong option, 130 if
interrupted.

examples:
  python -P -m bench.gpu_check --output report.md                          # the default model, in 4 bits
  python -P -m bench.gpu_check --model hf:meta-llama/Llama-3.1-8B-Instruct --vllm ~/vllm/bin/vllm
  python -P -m bench.gpu_check --device cpu --quick                        # a dry run: that the checks run
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from bench.gpu_check import section
from bench.gpu_check.report import report
from bench.gpu_check.section import Options, Outcome, Verdict
from model.checkpoints.sources import DEFAULT_MODEL

SECTIONS = ("environment", "resources", "parity", "libraries", "graphs", "verify", "memory", "roofline", "throughput")


def main() -> int:
    arguments = parser().parse_args()
    options = Options(model=arguments.model, device=arguments.device, quick=arguments.quick, vllm=arguments.vllm)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu_check: torch {torch.__version__} finds no card; --device cpu is a dry run", file=sys.stderr)
        return 2
    outcomes = {name: Outcome(Verdict.NOT_RUN, "interrupted") for name in arguments.only}
    try:
        check(options, outcomes)
        status = 1 if any(outcome.verdict is Verdict.FAILED for outcome in outcomes.values()) else 0
    except KeyboardInterrupt:
        status = 130
    text = report(options, outcomes)
    print(text, end="")
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")
    return status


def check(options: Options, outcomes: dict[str, Outcome]) -> None:
    """Replaces each outcome by its section's own."""
    for name in outcomes:
        print(f"{name}: running", file=sys.stderr)
        began = time.monotonic()
        outcomes[name] = section.run(name, options)
        print(f"{name}: {outcomes[name]} ({time.monotonic() - began:.0f} s)", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -P -m bench.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model_help = f"as `headrace serve` takes it (default: {DEFAULT_MODEL})"
    parser.add_argument("--model", default=DEFAULT_MODEL, help=model_help)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is a dry run (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="the least of everything; the figures mean little")
    parser.add_argument("--vllm", metavar="PROGRAM", help="vLLM's program (default: the one on the PATH)")
    only_help = "sections to run (default: all)"
    parser.add_argument("--only", nargs="+", metavar="SECTION", choices=SECTIONS, default=SECTIONS, help=only_help)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the report there, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
