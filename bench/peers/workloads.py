"""What every contestant is asked, and which figures are taken from the answers."""

import asyncio
import statistics
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import uvloop

from bench.peers.contestants import Contestant
from server.bench.client import ServerError
from server.bench.connection import Address
from server.bench.load import ClosedLoop
from server.bench.report import doubts
from server.bench.session import Plan, Run, Session
from server.bench.workload import Lengths
from server.bench.workload import Workload as Questions

Values = dict[str, float]  # figure -> what one run gave
TIMEOUT_S = 900.0
SPARE_TOKENS = 64  # prompts made of words are not exactly as long as was asked for


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop of `users`, in one session or several; what a session asks, nobody was asked before."""

    name: str
    users: int
    prompt_tokens: int
    output_tokens: int
    requests: int
    read: Callable[[Sequence[Run]], Values]
    shared_prefix: int = 0
    sessions: int = 1
    warmup: int = 2

    @property
    def tokens(self) -> int:
        """What the longest request may take."""
        return self.shared_prefix + self.prompt_tokens + self.output_tokens + SPARE_TOKENS

    def quick(self) -> "Workload":
        """The least of it that still shows that it runs."""
        return replace(self, sessions=1, requests=max(self.users, 2), output_tokens=min(self.output_tokens, 16))

    def measure(self, url: str, contestant: Contestant, round_: int) -> tuple[Values, list[str]]:
        """Its figures on the server at `url`, and reasons to doubt them. Raises ServerError where there are none."""
        parts = [f"{self.name}/{round_}/{part}" for part in range(self.sessions)]
        sessions = [Session(self._plan(url, contestant, part)) for part in parts]
        for session in sessions:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(session.run())
        runs = [run for session in sessions for run in session.runs]
        for run in runs:
            if run.figures.failed:
                raise ServerError(f"{self.name}: requests failed: {run.figures.error_examples}")
        remarks = [remark for run in runs for remark in doubts(run.figures, sessions[0].plan)]
        return self.read(runs), [
            remark for remark in dict.fromkeys(remarks) if "plateau" not in remark
        ]  # not used here

    def _plan(self, url: str, contestant: Contestant, part: str) -> Plan:
        lengths = Lengths(self.prompt_tokens, self.prompt_tokens), Lengths(self.output_tokens, self.output_tokens)
        questions = Questions(*lengths, shared_prefix=self.shared_prefix, seed=zlib.crc32(part.encode()))
        return Plan(
            servers=(Address.parse(url),),
            model=contestant.model,
            endpoint="completions",
            prompt_kind="auto",
            workload=questions,
            loads=(ClosedLoop(self.users, self.requests),),
            rounds=1,
            warmup=self.warmup,
            temperature=0.0,
            ignore_eos=contestant.ignores_eos,
            extra={},
            slo=None,
            timeout_s=TIMEOUT_S,
        )


def _prefill(runs: Sequence[Run]) -> Values:
    rates = [record.prompt_tokens / record.ttft for run in runs for record in run.records]
    return {"prefill": statistics.median(rates)}


def _decode(runs: Sequence[Run]) -> Values:
    times = [record.tpot for run in runs for record in run.records if record.tpot is not None]
    return {"decode": 1 / statistics.median(times)}


def _prefix(runs: Sequence[Run]) -> Values:
    cold, warm = zip(*([record.ttft for record in run.records] for run in runs), strict=True)
    return {"prefix": statistics.median(warm) / statistics.median(cold)}


def _throughput(runs: Sequence[Run]) -> Values:
    (run,) = runs
    return {f"output {run.load.level:g}": run.figures.output_tokens_per_s}


def _crowd(runs: Sequence[Run]) -> Values:
    (run,) = runs
    return _throughput(runs) | {"ttft": statistics.median(record.ttft for record in run.records) * 1000}


WORKLOADS = (
    Workload("prefill", 1, 512, 1, 8, _prefill),
    Workload("decode", 1, 96, 64, 8, _decode),  # its contexts are 128 long on average
    # A warm-up would begin with the prefix.
    Workload("prefix", 1, 16, 1, 2, _prefix, shared_prefix=512, sessions=4, warmup=0),
    Workload("c1", 1, 128, 64, 16, _throughput),
    Workload("c8", 8, 128, 64, 32, _throughput),
    Workload("c32", 32, 128, 64, 64, _crowd),
)
