"""What operators look at, by a real Prometheus that watches a real server under load."""

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from monitoring import DEPLOY, KEY, Prometheus, dashboard_queries
from support import RunningServer, patient_client, wait_until

pytestmark = pytest.mark.deploy

PROMETHEUS = DEPLOY / "prometheus"
PROMPT = "A man, a plan, a canal: Panama. " * 4
LONG = {"prompt": PROMPT, "max_tokens": 300, "ignore_eos": True, "temperature": 0, "stream": True}
QUIET = {  # what this load does not move: the series are there and say 0
    "Preemptions: preemptions",
    "Sequences and streams that went on: streams given up",
    "Blocks that do not add up, exchanges not recorded: violations",
    "Blocks that do not add up, exchanges not recorded: unrecorded",
    "Engines replaced: {{reason}}",  # has a series for each reason, of which one is 0
    "Ends by reason: {{reason}}",
    "KV blocks by state: {{state}}",
    "Sequences: running",
    "Sequences: waiting",
}


def check(promtool: Path, *arguments: str, stdin: bytes = b"") -> str:
    done = subprocess.run([promtool, *arguments], input=stdin, capture_output=True)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def test_promtool_finds_nothing_wrong_with_the_configuration(promtool: Path) -> None:
    check(promtool, "check", "config", f"{PROMETHEUS}/prometheus.yml")
    check(promtool, "check", "rules", "--lint-fatal", *map(str, sorted(PROMETHEUS.glob("rules/*.yml"))))


def test_every_alert_fires_on_its_fault_and_alone(promtool: Path) -> None:
    assert "SUCCESS" in check(promtool, "test", "rules", f"{PROMETHEUS}/tests/alerts_test.yml")


def test_promtool_finds_nothing_wrong_with_the_metrics(promtool: Path, server: RunningServer) -> None:
    """Of our own names: a colon, which vLLM's have, is reserved for recording rules."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines(keepends=True)
    own = "".join(line for line in lines if "vllm:" not in line)
    assert check(promtool, "check", "metrics", stdin=own.encode()) == ""


async def test_no_panel_is_empty_after_a_short_load(server: RunningServer, prometheus: Prometheus) -> None:
    queries = dashboard_queries()
    assert queries.keys() >= QUIET
    wait_until(lambda: prometheus.ask("up") == [1.0], 60)
    await load(server)
    wait_until(lambda: prometheus.says("headrace_requests_rejected_total"), 60)
    refuse(server)  # once more, because a series that begins with its first refusal has not grown yet
    deadline = time.monotonic() + 60
    while missing := [name for name, query in queries.items() if not is_told(name, prometheus.ask(query))]:
        assert time.monotonic() < deadline, missing
        await asyncio.sleep(0.5)


def is_told(name: str, values: list[float]) -> bool:
    """Whether a panel's query has an answer, numbers, and of what the load moves more than 0."""
    return bool(values) and not any(map(math.isnan, values)) and (name in QUIET or min(values) > 0)


def test_a_picture_shows_the_answers_of_every_panel(prometheus: Prometheus, tmp_path: Path) -> None:
    """After the load above."""
    script, picture = DEPLOY / "grafana/draw_dashboard.py", tmp_path / "panels.svg"
    command = [sys.executable, "-P", script, prometheus.url, picture, "--minutes", "2"]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(script.parent)}, check=True)
    drawn = set(re.findall(r">([^<>]+)</text>", picture.read_text()))
    titles_and_legends = {part for name in dashboard_queries() for part in name.split(": ") if "{{" not in part}
    assert titles_and_legends <= drawn
    assert {"length", "127.0.0.1", "ada"} <= {said.split(":")[0] for said in drawn}


def test_every_rule_is_evaluated_and_no_alert_fires(prometheus: Prometheus) -> None:
    """After the load above, in which an engine was killed and requests were refused: that alone is no alarm."""
    wait_until(lambda: all(rule["evaluationTime"] > 0 for rule in prometheus.rules()), 60)
    rules = prometheus.rules()
    assert len(rules) == 15
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    assert [alert for rule in rules for alert in rule.get("alerts", ()) if alert["state"] == "firing"] == []


async def load(server: RunningServer) -> None:
    """Everything that moves a panel."""
    async with patient_client(server.url) as http:
        http.headers["authorization"] = f"Bearer {KEY}"
        for _ in range(2):  # the second finds the first one's prefix
            await http.post("/v1/completions", json=LONG | {"stream": False, "n": 3})
        await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8})
        refuse(server)
        await leave(http)
        await come_back(http)
        await lose_the_engine(http, server)


def refuse(server: RunningServer) -> None:
    body, headers = {"prompt": "a", "temperature": 9}, {"authorization": f"Bearer {KEY}"}
    assert httpx.post(f"{server.url}/v1/completions", json=body, headers=headers).status_code == 400


async def leave(http: httpx.AsyncClient) -> None:
    async with http.stream("POST", "/v1/completions", json=LONG) as answer:
        await anext(answer.aiter_lines())


async def come_back(http: httpx.AsyncClient) -> None:
    async with http.stream("POST", "/v1/completions", json=LONG, headers={"x-headrace-resumable": "true"}) as answer:
        stream = answer.headers["x-headrace-stream"]
        await anext(answer.aiter_lines())
    rest = await http.get(f"/v1/streams/{stream}", headers={"last-event-id": f"{stream}:1"})
    assert "[DONE]" in rest.text


async def lose_the_engine(http: httpx.AsyncClient, server: RunningServer) -> None:
    async with http.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        os.kill(server.engine, signal.SIGKILL)
        said = [json.loads(line[6:]) async for line in lines if line.startswith("data: {")]
    assert said[-1]["choices"][0]["finish_reason"] == "length"
