"""Everything a benchmark found, as one JSON document: the plan, the machine, every figure, every request's times."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import msgspec

from server.bench.compare import compare
from server.bench.record import Record
from server.bench.session import Plan, Run, Session

DIGITS = 6  # of a second


def document(session: Session) -> bytes:
    """JSON in UTF-8. Times of requests are seconds after the run's first request; the API key is left out."""
    servers = [
        {
            "name": contender.name,
            "url": contender.client.address.url,
            "model": contender.target.model,
            "prompts": "words" if contender.target.material.is_text else "ids",
            "tokens_per_word": contender.target.material.tokens_per_word,
            "prompt_overhead_tokens": contender.target.material.overhead,
        }
        for contender in session.contenders
    ]
    content = {
        "headrace": version("headrace"),
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
        "servers": servers,
        "plan": _plan(session.plan),
        "runs": [_run(run) for run in session.runs],
        "medians": [
            {"load": row.load.label, "figure": row.name, "values": row.values, "ratio": row.ratio}
            for row in compare(session.runs)
        ],
    }
    return msgspec.json.encode(content) + b"\n"


def _plan(plan: Plan) -> dict[str, Any]:
    workload = plan.workload
    return {
        "endpoint": plan.endpoint,
        "loads": plan.loads,
        "rounds": plan.rounds,
        "warmup": plan.warmup,
        "prompt_tokens": workload.prompt,
        "output_tokens": workload.output,
        "file_lines": len(workload.entries),
        "shared_prefix": workload.shared_prefix,
        "prefix_groups": workload.prefix_groups,
        "seed": workload.seed,
        "temperature": plan.temperature,
        "ignore_eos": plan.ignore_eos,
        "extra_body": plan.extra,
        "slo": plan.slo,
        "timeout_s": plan.timeout_s,
    }


def _run(run: Run) -> dict[str, Any]:
    begin = min((record.start for record in run.records), default=0.0)
    return {
        "server": run.server,
        "load": run.load.label,
        "round": run.round,
        "figures": run.figures,
        "requests": [_record(record, begin) for record in run.records],
    }


def _record(record: Record, begin: float) -> dict[str, Any]:
    def after(time: float | None) -> float | None:
        return None if time is None else round(time - begin, DIGITS)

    return {
        "start": after(record.start),
        "due": after(record.due),
        "chunks": [after(time) for time in record.chunks],
        "finish": after(record.finish),
        "asked_tokens": record.asked_tokens,
        "usage": record.usage,
        "failure": record.failure,
    }
