"""What `headrace bench` does: turns options into a plan, runs it, prints and writes the results."""

import argparse
import asyncio
import sys
from collections.abc import Callable

from server.bench.client import ServerError
from server.bench.connection import Address
from server.bench.document import document
from server.bench.load import ClosedLoop, Load, OpenLoop
from server.bench.options import (
    DEFAULT_CONCURRENCY,
    DEFAULT_DURATION_S,
    LEAST_REQUESTS,
    REQUESTS_PER_USER,
    add_arguments,
)
from server.bench.plot import plot
from server.bench.probe import PromptKind
from server.bench.report import report
from server.bench.session import Plan, Session
from server.bench.workload import Entry, Workload, read_entries

__all__ = ["add_arguments", "plan_of", "run"]


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark, prints and writes its results, and returns the exit status."""
    try:
        session = Session(plan_of(args))
    except (ValueError, OSError) as error:
        print(f"headrace bench: {error}", file=sys.stderr)
        return 2
    status = _finish(session)
    if session.runs:
        if args.json:
            args.json.write_bytes(document(session))
        if args.svg:
            args.svg.write_text(plot(session), encoding="utf-8")
        print(report(session))
    return status


def _finish(session: Session) -> int:
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(session.run())
    except KeyboardInterrupt:
        print("headrace bench: interrupted; what follows is what was finished", file=sys.stderr)
        return 130
    except ServerError as error:
        print(f"headrace bench: {error}", file=sys.stderr)
        return 1
    return 0 if all(run.figures.answered for run in session.runs) else 1


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where there is one: the client then takes less from a server on the same cores."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def plan_of(args: argparse.Namespace) -> Plan:
    """What the options ask for. ValueError names options that contradict each other, OSError an unreadable file."""
    entries = tuple(read_entries(args.workload)) if args.workload else ()
    if args.versus_api_key and not args.versus:
        raise ValueError("--versus-api-key needs --versus")
    servers = [Address.parse(args.url.url, args.api_key)]
    if args.versus:
        servers.append(Address.parse(args.versus.url, args.versus_api_key))
    return Plan(
        servers=tuple(servers),
        model=args.model,
        endpoint=args.endpoint,
        prompt_kind=_prompt_kind(args, has_text=any(entry.prompt is not None for entry in entries)),
        workload=_workload(args, entries),
        loads=_loads(args),
        rounds=args.rounds or (3 if args.versus else 1),
        warmup=args.warmup,
        temperature=args.temperature,
        ignore_eos=args.ignore_eos == "yes",
        extra=args.body,
        slo=args.slo,
        timeout_s=args.timeout,
    )


def _workload(args: argparse.Namespace, entries: tuple[Entry, ...]) -> Workload:
    if args.prefix_groups > 1 and not args.shared_prefix:
        raise ValueError("--prefix-groups needs --shared-prefix")
    return Workload(
        prompt=args.prompt_tokens,
        output=args.output_tokens,
        entries=entries,
        shared_prefix=args.shared_prefix,
        prefix_groups=args.prefix_groups,
        seed=args.seed,
    )


def _prompt_kind(args: argparse.Namespace, has_text: bool) -> PromptKind:
    kind: PromptKind = args.prompt_kind
    if kind == "ids" and args.endpoint == "chat":
        raise ValueError("--prompt-kind ids: a chat has no token ids, use --endpoint completions")
    if kind == "ids" and has_text:
        raise ValueError("--prompt-kind ids: the workload file holds prompts in text")
    return "words" if has_text else kind


def _loads(args: argparse.Namespace) -> tuple[Load, ...]:
    if args.rate:
        for name in ("concurrency", "requests"):
            if getattr(args, name):
                raise ValueError(f"--{name} belongs to the closed loop, --rate opens it")
        return tuple(OpenLoop(rate, args.duration or DEFAULT_DURATION_S) for rate in args.rate)
    if args.duration:
        raise ValueError("--duration needs --rate; a closed loop ends after --requests")
    return tuple(
        ClosedLoop(count, args.requests or max(LEAST_REQUESTS, REQUESTS_PER_USER * count))
        for count in args.concurrency or DEFAULT_CONCURRENCY
    )
