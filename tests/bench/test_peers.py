"""The comparison with peers: whose turn it is, what the values add up to, and that no server is left behind."""

import os
import signal
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support import wait_until

from bench.peers.chart import chart
from bench.peers.contestants import FAITHFUL, LLAMA_CPP, Contestant
from bench.peers.results import FIGURES, Results
from bench.peers.rounds import turns
from bench.peers.table import limits, ratios_table, values_table
from bench.peers.workloads import WORKLOADS
from bench.servers import Command, NoStart, memory_mb, proportional_kb, running, tree
from server.bench.record import Record, Usage

OUTPUT = next(figure for figure in FIGURES if figure.key == "output 32")
TTFT = next(figure for figure in FIGURES if figure.key == "ttft")
SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
print("child", child.pid, flush=True)
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def filled() -> Results:
    results = Results()
    values = {FAITHFUL: 600.0, LLAMA_CPP["Q4_1"]: 100.0, LLAMA_CPP["Q4_0"]: 300.0, LLAMA_CPP["Q8_0"]: 200.0}
    for name, value in values.items():
        for factor in (0.5, 1.0, 1.1):
            results.add("output 32", name, 0, value * factor)
        results.add("ttft", name, 0, 60000 / value)
    results.add("prefix", FAITHFUL, 0, 0.05)
    return results


def test_ratios_are_of_medians_to_the_same_file_and_to_the_best_of_all() -> None:
    assert filled().ratios(OUTPUT, FAITHFUL) == (6.0, 2.0)


def test_of_a_cost_the_best_is_the_least() -> None:
    assert filled().ratios(TTFT, FAITHFUL) == pytest.approx((1 / 6, 0.5))


def test_of_several_ways_to_start_a_server_the_better_one_counts() -> None:
    results = filled()
    for value in (110.0, 120.0, 130.0):
        results.add("output 32", LLAMA_CPP["Q4_1"], 1, value)
    assert results.values(OUTPUT, LLAMA_CPP["Q4_1"]) == [110.0, 120.0, 130.0]
    results.add("ttft", LLAMA_CPP["Q4_1"], 1, 700.0)
    assert results.values(TTFT, LLAMA_CPP["Q4_1"]) == [600.0]


def test_who_was_not_measured_has_no_ratio() -> None:
    results = Results()
    results.add("output 32", FAITHFUL, 0, 1.0)
    assert results.ratios(OUTPUT, FAITHFUL) == (None, None)
    assert results.ratios(TTFT, FAITHFUL) == (None, None)


def test_the_tables_show_medians_spreads_ratios_and_floors() -> None:
    results = filled()
    assert "| 32 at once, tok/s | 600 (300-660) | 100 (50.0-110) |" in values_table(results)
    assert "| 32 at once, tok/s | 6.00 (≥ 6) | 2.00 (≥ 2.2) |" in ratios_table(results)
    assert "| TTFT, 32 at once, ms | 0.17 (≤ 0.25) | 0.50 (≤ 0.5) |" in ratios_table(results)
    assert "prefill" not in values_table(results) + ratios_table(results)  # nobody was asked
    assert "0.05" in limits(results)


def test_the_chart_has_a_bar_for_everyone_in_every_panel() -> None:
    page = ET.fromstring(chart(filled()))
    bars = [bar for bar in page.iter("{http://www.w3.org/2000/svg}rect") if bar.get("class") != "page"]
    assert len(bars) == len(FIGURES) * 4


def test_contestants_take_turns_in_every_round() -> None:
    one = Contestant("one", lambda users, tokens: [Command(("one",), "/")])
    two = Contestant("two", lambda users, tokens: [Command((way,), "/") for way in "ab"[: 1 if users == 1 else 2]])
    plan = turns([one, two], WORKLOADS, rounds=2)
    order = [(turn.round, turn.workloads[0].users, turn.contestant.name, turn.way) for turn in plan]
    group = [("one", 0), ("two", 0), ("two", 1)]
    a_round = [(1, "one", 0), (1, "two", 0)] + [(users, *turn) for users in (8, 32) for turn in group]
    assert order == [(round_, *turn) for round_ in (1, 2) for turn in a_round]
    assert [workload.name for turn in plan[:1] for workload in turn.workloads] == ["prefill", "decode", "prefix", "c1"]


def test_decoding_is_timed_between_the_tokens_and_prefill_before_the_first() -> None:
    record = Record(start=0.0, asked_tokens=3, chunks=[2.0, 2.5, 3.0], finish=3.0, usage=Usage(512, 3))
    run = type("Run", (), {"records": [record]})
    reads = {workload.name: workload.read for workload in WORKLOADS}
    assert reads["prefill"]([run]) == {"prefill": 256.0}
    assert reads["decode"]([run]) == {"decode": 2.0}


def test_a_known_prefix_is_compared_with_the_same_servers_cold_one() -> None:
    cold = Record(start=0.0, asked_tokens=1, chunks=[2.0])
    warm = Record(start=3.0, asked_tokens=1, chunks=[3.5])
    (read,) = [workload.read for workload in WORKLOADS if workload.name == "prefix"]
    assert read([type("Run", (), {"records": [cold, warm]})]) == {"prefix": 0.25}


def test_memory_is_the_share_of_each_page() -> None:
    assert proportional_kb("00400000-7fff ---p [rollup]\nRss:  900 kB\nPss:  300 kB\nPss_Dirty:  100 kB\n") == 300
    assert proportional_kb("") == 0
    assert 1 < memory_mb(os.getpid()) < 1e6


def test_a_server_takes_what_it_started_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(Command((sys.executable, "-c", SERVER), "/health"), log) as server:
        processes = tree(server.process.pid)
        assert int(log.read_text().split()[1]) in processes
        assert len(processes) == 2
    assert server.process.returncode == -signal.SIGTERM
    wait_until(lambda: not any(map(is_running, processes)))


def test_a_server_that_ends_is_told_of_with_its_last_words(tmp_path: Path) -> None:
    command = Command((sys.executable, "-c", "raise SystemExit('no such model')"), "/health")
    with pytest.raises(NoStart, match="ended with 1: no such model"), running(command, tmp_path / "log"):
        pass


def is_running(pid: int) -> bool:
    """A zombie whose new parent has not looked yet runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
