"""What `headrace bench` may be asked, on the command line or by the environment, and how each value is read."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from server.bench.connection import Address
from server.bench.measure import Slo
from server.bench.workload import Lengths

T = TypeVar("T")

ENVIRONMENT = "HEADRACE_BENCH_"
DEFAULT_CONCURRENCY = (1, 8, 32)
DEFAULT_DURATION_S = 30.0
REQUESTS_PER_USER, LEAST_REQUESTS = 4, 16
OWN_FIELDS = frozenset({"model", "prompt", "messages", "max_tokens", "stream", "stream_options", "n"})
DESCRIPTION = "Measures any OpenAI-compatible server: speed and latency of streamed answers under a chosen load."
EPILOG = f"""\
examples:
  headrace bench --concurrency 1,8,32
  headrace bench --rate 2,4 --duration 30 --slo ttft=0.5,tpot=0.1
  headrace bench --shared-prefix 512 --prompt-tokens 32:128 --json figures.json --svg figures.svg
  headrace bench --url http://127.0.0.1:8000 --versus http://127.0.0.1:8080 --rounds 3

TTFT is the time to the first text, TPOT the time per further token, ITL the time between chunks of text,
E2E the time to the whole answer. The plateau lasts from the first answer's end to the last request's start.

Every option can come from the environment too: --prompt-tokens from {ENVIRONMENT}PROMPT_TOKENS, and so on.
Exit status: 0; 1 if a server could not be asked or a run had no answer; 2 for a wrong option; 130 if interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `headrace bench`; `run` takes what the parser makes of them."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_server(parser.add_argument_group("server"))
    _add_load(parser.add_argument_group("load"))
    _add_workload(parser.add_argument_group("workload"))
    _add_output(parser.add_argument_group("output"))


def _add_server(group: argparse._ArgumentGroup) -> None:
    url = {"metavar": "URL", "type": _said(Address.parse)}
    _add(group, "--url", **url, default="http://127.0.0.1:8000", help="server to measure; /v1 may be left out")
    _add(group, "--model", metavar="NAME", help="model to ask for (default: the first that /v1/models lists)")
    _add(group, "--api-key", metavar="KEY", help="bearer token for --url; better given by the environment")
    _add(group, "--versus", **url, help="second server, measured in turn with the first: A, B, A, B, ...")
    _add(group, "--versus-api-key", metavar="KEY", help="bearer token for --versus")
    _add(group, "--timeout", metavar="S", type=_said(_positive), default="600", help="limit for one answer, in seconds")


def _add_load(group: argparse._ArgumentGroup) -> None:
    concurrency, rates = _said(_list_of(_count)), _said(_list_of(_positive))
    default = ",".join(map(str, DEFAULT_CONCURRENCY))
    _add(group, "--concurrency", metavar="N,...", type=concurrency, help=f"requests at once (default: {default})")
    requests_help = f"per concurrency (default: {REQUESTS_PER_USER} for each at once, at least {LEAST_REQUESTS})"
    _add(group, "--requests", metavar="N", type=_said(_count), help=requests_help)
    _add(group, "--rate", metavar="R,...", type=rates, help="instead: Poisson arrivals, in requests per second")
    duration = f"seconds of arrivals per rate (default: {DEFAULT_DURATION_S:g})"
    _add(group, "--duration", metavar="S", type=_said(_positive), help=duration)
    _add(group, "--rounds", metavar="N", type=_said(_count), help="runs per load (default: 1, with --versus 3)")
    _add(group, "--warmup", metavar="N", type=_said(_number), default="2", help="dropped requests before every run")


def _add_workload(group: argparse._ArgumentGroup) -> None:
    lengths = {"metavar": "N[:M]", "type": _said(Lengths.parse), "default": "128"}
    _add(group, "--endpoint", **_choice("completions", "chat"), default="completions", help="what is asked")
    _add(group, "--prompt-tokens", **lengths, help="prompt length in tokens, or an even range of lengths")
    _add(group, "--output-tokens", **lengths, help="answer length in tokens, or an even range of lengths")
    file_help = "JSONL, one request a line: prompt or prompt_tokens, output_tokens; the options fill what is missing"
    _add(group, "--workload", metavar="FILE", type=Path, help=file_help)
    kind_help = "random token ids or common English words; auto: ids where the server takes them"
    _add(group, "--prompt-kind", **_choice("auto", "ids", "words"), default="auto", help=kind_help)
    prefix_help = "tokens in front of every prompt that are the same for its group"
    _add(group, "--shared-prefix", metavar="N", type=_said(_number), default="0", help=prefix_help)
    _add(group, "--prefix-groups", metavar="G", type=_said(_count), default="1", help="number of different prefixes")
    _add(group, "--temperature", metavar="T", type=_said(_temperature), default="0", help="0 is greedy")
    _add(group, "--ignore-eos", **_choice("yes", "no"), default="yes", help="yes: every answer gets its full length")
    _add(group, "--body", metavar="JSON", type=_said(_fields), default="{}", help="further fields of every request")
    _add(group, "--seed", metavar="N", type=_said(_number), default="0", help="of lengths, prompts and arrivals")


def _add_output(group: argparse._ArgumentGroup) -> None:
    slo_help = "limits in seconds of a good answer, of ttft, tpot, e2e: counts good requests per second"
    _add(group, "--slo", metavar="NAME=S,...", type=_said(Slo.parse), help=slo_help)
    _add(group, "--json", metavar="FILE", type=_said(_new_file), help="write every figure and every request's times")
    _add(group, "--svg", metavar="FILE", type=_said(_new_file), help="plot throughput and TTFT against the load")


def _add(group: argparse._ArgumentGroup, flag: str, *, help: str, **options: Any) -> None:
    """Adds an option that the environment can set; its help names the built-in default, never the environment's."""
    if options.get("default"):
        help += f" (default: {options['default']})"
    name = ENVIRONMENT + flag.removeprefix("--").replace("-", "_").upper()
    if value := os.environ.get(name):
        options["default"] = value
    group.add_argument(flag, help=help.replace("%", "%%"), **options)


def _choice(*names: str) -> dict[str, Any]:
    """Like argparse's choices, which do not hold for a default, and so not for the environment."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text!r} is none of {', '.join(names)}")
        return text

    return {"type": _said(parse), "metavar": "{" + ",".join(names) + "}"}


def _said(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Lets argparse show what a ValueError says."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _list_of(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    return lambda text: tuple(dict.fromkeys(parse(part) for part in text.split(",")))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is no whole number from 0")
    return int(text)


def _count(text: str) -> int:
    if (value := _number(text)) < 1:
        raise ValueError(f"{text!r} is below 1")
    return value


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(f"{text!r} is no number from 0")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is no number above 0")
    return value


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ValueError(f"{text!r} is no JSON object: {error}") from error
    if clash := OWN_FIELDS & fields.keys():
        raise ValueError(f"{', '.join(sorted(clash))}: the benchmark sets this itself")
    return fields


def _new_file(text: str) -> Path:
    """Checked before the benchmark, so that its results are not lost after it."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{text!r} cannot be written")
    return path
