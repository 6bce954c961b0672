"""How figures are shown to people: aligned tables, every unit named, every doubt said."""

from collections.abc import Iterable, Sequence

from server.bench.compare import compare
from server.bench.measure import Figures, Spread
from server.bench.session import Plan, Run, Session

BUSY_CLIENT = 0.5  # cores: beyond this the client takes speed from a server on the same few cores
LATE_CLIENT_S = 0.010


def report(session: Session) -> str:
    """The whole report for a terminal: of one run its distributions, of several their medians."""
    plan, runs = session.plan, session.runs
    if plan.rounds > 1 or len(plan.servers) > 1:
        parts = [_comparison(session)]
    else:
        parts = [_throughput(runs), _latencies(runs)]
    return "\n\n".join(part for part in [_heading(session), *parts, _errors(runs), _remarks(plan, runs)] if part)


def _heading(session: Session) -> str:
    rows = []
    for contender in session.contenders:
        target = contender.target
        made_of = "words" if target.material.is_text else "token ids"
        rows.append([contender.name, contender.client.address.url, target.model, f"{target.endpoint} of {made_of}"])
    return table(rows, left=4)


def _throughput(runs: Sequence[Run]) -> str:
    rows = [["load", "answered", "failed", "requests/s", "good/s", "output tok/s", "plateau tok/s", "total tok/s"]]
    rows[0] += ["prompt tok", "cached tok", "client CPU"]
    for run in runs:
        f = run.figures
        speeds = [f.requests_per_s, f.good_requests_per_s, f.output_tokens_per_s]
        speeds += [f.plateau.output_tokens_per_s if f.plateau else None, f.total_tokens_per_s]
        cached = "-" if f.cached_tokens is None else str(f.cached_tokens)
        counts = [run.load.label, str(f.answered), str(f.failed)]
        rows.append([*counts, *map(number, speeds), str(f.prompt_tokens), cached, f"{f.client_cpu:.0%}"])
    return table(rows)


def _latencies(runs: Sequence[Run]) -> str:
    rows = [["load", "latency, ms", "mean", "p50", "p90", "p95", "p99"]]
    for run in runs:
        f = run.figures
        named = [("TTFT", f.ttft), ("TPOT", f.tpot), ("ITL", f.itl), ("E2E", f.e2e)]
        rows += [[run.load.label, name, *_milliseconds(spread)] for name, spread in named]
    return table(_grouped(rows), left=2)


def _milliseconds(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["-"] * 5
    return [number(value * 1000) for value in (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99)]


def _comparison(session: Session) -> str:
    names = [contender.name for contender in session.contenders]
    ratio = ["A / B"] if len(names) == 2 else []
    rows = [["load", "figure", *(cell for name in names for cell in (f"{name} median", "least - most")), *ratio]]
    for row in compare(session.runs):
        cells = [cell for name in names for cell in (number(row.median(name)), _range(row.values[name]))]
        rows.append([row.load.label, row.name, *cells, *([number(row.ratio)] if ratio else [])])
    rounds = f"Medians of {session.plan.rounds} rounds" + (", A and B in turn" if ratio else "")
    return f"{rounds}\n{table(_grouped(rows), left=2)}"


def _grouped(rows: list[list[str]]) -> list[list[str]]:
    """Names each load once, where its rows begin."""
    above = [[""], *rows]
    return [["" if row[0] == before[0] else row[0], *row[1:]] for before, row in zip(above, rows, strict=False)]


def _range(values: Sequence[float]) -> str:
    return f"{number(min(values))} - {number(max(values))}" if values else "-"


def _errors(runs: Iterable[Run]) -> str:
    rows = [["failed", "server", "load", "kind", "first message"]]
    for run in runs:
        f = run.figures
        rows += [
            [str(count), run.server, run.load.label, kind, f.error_examples[kind]] for kind, count in f.errors.items()
        ]
    return table(rows, left=5) if len(rows) > 1 else ""


def _remarks(plan: Plan, runs: Sequence[Run]) -> str:
    """What a reader must know before believing the figures."""
    lines = [f"note: {run.server}, {run.load.label}: {remark}" for run in runs for remark in doubts(run.figures, plan)]
    return "\n".join(dict.fromkeys(lines))


def doubts(f: Figures, plan: Plan) -> list[str]:
    """Reasons to mistrust a run's figures."""
    has_prefixes = plan.workload.shared_prefix > 0 or any(entry.prompt for entry in plan.workload.entries)
    reasons = [
        (f.without_usage, f"{f.without_usage} answers came without usage: their chunks were counted as tokens"),
        (f.impossible_counts, f"{f.impossible_counts} answers had more chunks than tokens by the server's usage"),
        (plan.ignore_eos and f.short_answers, f"{f.short_answers} answers were shorter than asked for"),
        (
            (f.cached_tokens or 0) > 0.05 * f.prompt_tokens and not has_prefixes,
            f"{f.cached_tokens} prompt tokens came from the prefix cache: take another --seed, or restart the server",
        ),
        (f.client_cpu > BUSY_CLIENT, f"the load generator itself used {f.client_cpu:.0%} of a core"),
        (
            (f.lateness_p99 or 0) > LATE_CLIENT_S,
            f"the load generator sent late (p99 {number((f.lateness_p99 or 0) * 1000)} ms)",
        ),
        (
            f.plateau is None and f.answered > 0,
            "too few requests for a plateau",
        ),
    ]
    return [reason for holds, reason in reasons if holds]


def number(value: float | None) -> str:
    """Three digits that mean something, more before the point."""
    if value is None:
        return "-"
    size = abs(float(f"{value:.3g}"))
    digits = 0 if size >= 100 or value == 0 else 1 if size >= 10 else 2 if size >= 0.1 else 4
    return f"{value:.{digits}f}"


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns, the first `left` of them to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
