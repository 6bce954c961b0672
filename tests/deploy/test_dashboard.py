"""The dashboard and the rules speak of series that exist, and say all that they should."""

import re
import runpy

import yaml
from monitoring import DEPLOY, dashboard_queries

from server.metrics import Metrics

SUFFIXES = r"(_bucket|_sum|_count|_total)?"


def exposed() -> set[str]:
    """The names of all samples, whatever has happened so far."""
    names = set()
    for family in Metrics().collect():
        samples = {sample.name for sample in family.samples}
        suffix = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= samples | {family.name + end for end in suffix}
    return names


def rules() -> list[dict[str, str]]:
    files = sorted((DEPLOY / "prometheus/rules").glob("*.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def test_the_dashboard_is_what_its_script_writes() -> None:
    dashboard = DEPLOY / "grafana/dashboards/headrace.json"
    written = runpy.run_path(str(DEPLOY / "grafana/write_dashboard.py"))["text"]()
    assert dashboard.read_text() == written, "run: python deploy/grafana/write_dashboard.py"


def test_every_series_that_is_asked_for_exists() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    queries = [*dashboard_queries().values(), *(rule["expr"] for rule in rules())]
    asked = {name for query in queries for name in re.findall(r"\bheadrace[_:][a-z_:0-9]+", query)}
    assert asked - exposed() - recorded == set()
    assert len(asked) > 30


def test_every_series_is_shown_or_watched() -> None:
    queries = " ".join([*dashboard_queries().values(), *(rule["expr"] for rule in rules())])
    families = {family.name for family in Metrics().collect() if not family.name.endswith("_info")}
    assert {name for name in families if not re.search(rf"\b{name}{SUFFIXES}\b", queries)} == set()


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    cases = (DEPLOY / "prometheus/tests/alerts_test.yml").read_text()
    for alert in (rule for rule in rules() if "alert" in rule):
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "runbook"}
        assert f'alertname="{alert["alert"]}"' in cases
