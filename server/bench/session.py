"""In which order a benchmark runs: load by load, round by round, server by server, each with its own warm-up."""

import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
from tqdm import tqdm

from server.bench.client import Client
from server.bench.connection import Address
from server.bench.load import ClosedLoop, Load, Schedule, drive
from server.bench.measure import Figures, Slo, figures
from server.bench.probe import PATHS, Endpoint, PromptKind, Target, probe
from server.bench.record import Record, Request
from server.bench.workload import Question, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole benchmark."""

    servers: tuple[Address, ...]  # two of them are compared
    model: str | None
    endpoint: Endpoint
    prompt_kind: PromptKind
    workload: Workload
    loads: tuple[Load, ...]
    rounds: int
    warmup: int  # requests before every run, dropped
    temperature: float
    ignore_eos: bool
    extra: dict[str, Any]  # further fields of every request
    slo: Slo | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Contender:
    """A server in the benchmark, known and ready to be asked."""

    name: str
    client: Client
    target: Target


@dataclass(frozen=True, slots=True)
class Run:
    """One server under one load, once."""

    server: str
    load: Load
    round: int  # from 1
    figures: Figures
    records: list[Record]


@dataclass(slots=True)
class Session:
    """Runs a plan. What is finished stands in `runs` at any time, so that an interrupted benchmark is not lost."""

    plan: Plan
    contenders: list[Contender] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    async def run(self) -> None:
        """Raises ServerError where a server cannot be asked at all."""
        try:
            for name, address in zip("AB", self.plan.servers, strict=False):
                self.contenders.append(await self._contender(name, address))
            for load in self.plan.loads:
                for number in range(1, self.plan.rounds + 1):
                    for contender in self.contenders:  # interleaved, since a machine's speed drifts
                        self.runs.append(await self._run(contender, load, number))
        finally:
            for contender in self.contenders:
                contender.client.close()

    async def _contender(self, name: str, address: Address) -> Contender:
        client = Client(address, self.plan.timeout_s)
        target = await probe(client, self.plan.model, self.plan.endpoint, self.plan.prompt_kind)
        return Contender(name, client, target)

    async def _run(self, contender: Contender, load: Load, number: int) -> Run:
        plan, part = self.plan, f"{load.label}/{number}"
        schedule = self._schedule(contender.target, load, part)
        await self._warm_up(contender, load, f"{part}/warm-up")
        cpu, begin = time.process_time(), time.monotonic()
        records = await _drive(contender, load, schedule, f"{contender.name} {load.label}, round {number}")
        share = (time.process_time() - cpu) / (time.monotonic() - begin)
        return Run(contender.name, load, number, figures(records, share, plan.slo), records)

    async def _warm_up(self, contender: Contender, load: Load, part: str) -> None:
        count = self.plan.warmup
        users = ClosedLoop(load.concurrency if isinstance(load, ClosedLoop) else count, count)
        await _drive(contender, users, self._schedule(contender.target, users, part), f"{contender.name} warm-up")

    def _schedule(self, target: Target, load: Load, part: str) -> Schedule:
        workload = self.plan.workload
        dues = load.due_times(random.Random(f"{workload.seed}/{part}/arrivals"))
        questions = workload.questions(len(dues), target.material, part)
        return [(due, self.request(target, question)) for due, question in zip(dues, questions, strict=True)]

    def request(self, target: Target, question: Question) -> Request:
        """Words a question for a server."""
        fields = target.body(question.prompt, question.output_tokens) | {
            "temperature": self.plan.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.plan.ignore_eos:
            fields["ignore_eos"] = True
        if self.plan.temperature > 0:
            fields["seed"] = question.seed
        return Request(PATHS[target.endpoint], msgspec.json.encode(fields | self.plan.extra), question.output_tokens)


async def _drive(contender: Contender, load: Load, schedule: Schedule, title: str) -> list[Record]:
    with tqdm(total=len(schedule), desc=title, unit="request", disable=None, leave=False, file=sys.stderr) as bar:

        async def ask(request: Request) -> Record:
            record = await contender.client.stream(request)
            bar.update()
            return record

        return await drive(load, schedule, ask)
