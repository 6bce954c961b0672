"""In which order a benchmark runs: load by load, round by round, server by server, each with its own warm-up."""

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from tqdm import tqdm

from server.bench.client import Client
from server.bench.connection import Address
from server.bench.load import ClosedLoop, Load, drive
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
        dues = load.due_times(random.Random(f"{plan.workload.seed}/{part}/arrivals"))
        requests = self._requests(contender.target, len(dues), part)
        await self._warm_up(contender, load, part)
        cpu, begin = time.process_time(), time.monotonic()
        records = await _drive(contender, load, requests, dues, f"{contender.name} {load.label}, round {number}")
        share = (time.process_time() - cpu) / (time.monotonic() - begin)
        return Run(contender.name, load, number, figures(records, share, plan.slo), records)

    async def _warm_up(self, contender: Contender, load: Load, part: str) -> None:
        count = self.plan.warmup
        requests = self._requests(contender.target, count, f"{part}/warm-up")
        at_once = load.concurrency if isinstance(load, ClosedLoop) else count
        await _drive(contender, ClosedLoop(at_once, count), requests, [], f"{contender.name} warm-up")

    def _requests(self, target: Target, count: int, part: str) -> list[Request]:
        return [self.request(target, q) for q in self.plan.workload.questions(count, target.material, part)]

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


async def _drive(
    contender: Contender, load: Load, requests: Sequence[Request], dues: Sequence[float], title: str
) -> list[Record]:
    with tqdm(total=len(requests), desc=title, unit="request", disable=None, leave=False, file=sys.stderr) as bar:

        async def ask(request: Request) -> Record:
            record = await contender.client.stream(request)
            bar.update()
            return record

        return await drive(load, requests, dues, ask)
