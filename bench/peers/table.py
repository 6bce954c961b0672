"""How the comparison reads as Markdown: every median with its spread, then the ratios beside their floors."""

from importlib.metadata import version

from bench.peers.contestants import FAITHFUL, FAST
from bench.peers.llama_cpp import PACKAGE, VERSION
from bench.peers.results import FIGURES, Figure, Results
from model.kernels.cpu import available_cores
from server.bench.report import number

MEANING = """\
- **prefill**: 512 tokens of prompt over the time to the first token, one request at a time.
- **at once**: output tokens per second of so many users, 128 tokens in and 64 out, greedy, in a closed loop; TTFT is
  the median time to the first token of 32 of them.
- **decode alone**: 1 / TPOT of one request whose context is 128 tokens on average.
- **TTFT, known : new**: of a second request that begins with the same 512 tokens, over that of the first.
- **memory**: the peak of the proportional set size (PSS) of the server and all its processes, spare engine included.\
"""


def document(results: Results, conditions: str) -> str:
    return f"""\
# Headrace beside its peers

Written by `make bench-peers`. {conditions}

![Medians as bars](peers.svg)

{values_table(results)}

{MEANING}

Ratios to llama.cpp on the same file and on the best of its three, with the floors (of TTFT: ceilings) set for them:

{ratios_table(results)}
{limits(results)}"""


def conditions(rounds: int) -> str:
    """Under which the figures hold."""
    with open("/proc/cpuinfo") as lines:
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return (
        f"Medians of {rounds} rounds in which all took turns, each alone on the machine but for the client: "
        f"{available_cores()} cores ({processor}), headrace {version('headrace')} with default options, "
        f"{PACKAGE} {VERSION} built for this processor (`-t {available_cores()} -fa on -np N`, with one KV cache for "
        f"all slots or one each, whichever did better), transformers {version('transformers')} (continuous batching)."
    )


def values_table(results: Results) -> str:
    """Medians, least and most in brackets."""
    names = results.contestants
    rows = [
        [figure.title, *(_spread(results.values(figure, name), results.median(figure, name)) for name in names)]
        for figure in FIGURES
        if any(results.values(figure, name) for name in names)
    ]
    return _markdown([["median (least-most)", *names], *rows])


def ratios_table(results: Results) -> str:
    ours = [name for name in (FAITHFUL, FAST) if name in results.contestants]
    heads = [f"{name} / {whose}" for name in ours for whose in ("same file", "best")]
    rows = [
        [figure.title, *(cell for name in ours for cell in _ratios(results, figure, name))]
        for figure in FIGURES
        if figure.floors and any(ratio is not None for name in ours for ratio in results.ratios(figure, name))
    ]
    return _markdown([["ratio (floor)", *heads], *rows])


def limits(results: Results) -> str:
    lines = [
        f"- {figure.title}: {number(value)}, at most {number(figure.limit)} wanted"
        for figure in FIGURES
        if figure.limit is not None and (value := results.median(figure, FAITHFUL)) is not None
    ]
    return "".join(f"\n{line}" for line in lines) + "\n" if lines else ""


def _ratios(results: Results, figure: Figure, name: str) -> list[str]:
    sign = "≤" if figure.is_cost else "≥"
    pairs = zip(results.ratios(figure, name), figure.floors[name], strict=True)
    return [f"{number(ratio)} ({sign} {floor:g})" for ratio, floor in pairs]


def _spread(values: list[float], median: float | None) -> str:
    if len(values) < 2:
        return number(median)
    return f"{number(median)} ({number(min(values))}-{number(max(values))})"


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
