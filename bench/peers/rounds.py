"""In which order contestants and workloads take turns, and what happens in a turn."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from bench.peers.contestants import Contestant
from bench.peers.llama_cpp import cache_folder
from bench.peers.results import Results
from bench.peers.workloads import WORKLOADS, Workload
from bench.servers import Command, NoStart, Scales, running
from server.bench.client import ServerError

CROWD = max(workload.users for workload in WORKLOADS)  # serving so many, a server is weighed


@dataclass(frozen=True, slots=True)
class Turn:
    """One contestant, started one way, for the workloads of so many users."""

    round: int  # from 1
    contestant: Contestant
    way: int
    command: Command
    workloads: list[Workload]


def turns(contestants: Sequence[Contestant], workloads: Sequence[Workload], rounds: int) -> list[Turn]:
    """A, B, A, B for each number of users, since a machine's speed drifts."""
    groups = [[one for one in workloads if one.users == users] for users in sorted({one.users for one in workloads})]
    return [
        Turn(round_, contestant, way, command, group)
        for round_ in range(1, rounds + 1)
        for group in groups
        for contestant in contestants
        for way, command in enumerate(contestant.ways(group[0].users, max(one.tokens for one in group)))
    ]


def play(plan: Sequence[Turn], results: Results) -> None:
    """Runs everything. A contestant that cannot start or answer is told of, and the others go on."""
    log = cache_folder() / "server.log"
    with tqdm(total=sum(len(turn.workloads) for turn in plan), unit="run", file=sys.stderr) as bar:
        for turn in plan:
            name = turn.contestant.name
            try:
                with running(turn.command, log) as server, _weighed(turn, server.process.pid, results):
                    for workload in turn.workloads:
                        bar.set_description(f"round {turn.round}, {name}, {workload.name}")
                        values, remarks = workload.measure(server.url, turn.contestant, turn.round)
                        for figure, value in values.items():
                            results.add(figure, name, turn.way, value)
                        for remark in remarks:
                            bar.write(f"note: {name}, {workload.name}: {remark}", file=sys.stderr)
                        bar.update()
            except (NoStart, ServerError) as error:
                bar.write(f"bench.peers: {name}: {error}", file=sys.stderr)


@contextmanager
def _weighed(turn: Turn, pid: int, results: Results) -> Iterator[None]:
    """Keeps the peak of the memory where the workloads are those of a crowd."""
    if turn.workloads[0].users < CROWD:
        yield
        return
    with Scales(pid) as scales:
        yield
    results.add("memory", turn.contestant.name, turn.way, scales.peak_mb)
