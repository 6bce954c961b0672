"""The Compose file: valid by its specification's schema, and true to the server, to Prometheus and to Grafana."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring import DEPLOY

from server.config import ServeOptions, options_of, read
from server.departure import _FLUSH_S

COMPOSE = DEPLOY / "compose/compose.yaml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]


def options() -> ServeOptions:
    given = SERVICES["headrace"]["environment"]
    assert given.keys() <= {option.variable for option in options_of(ServeOptions)}
    return read(ServeOptions, Namespace(), given)


@pytest.mark.deploy
def test_the_file_is_valid_and_a_misspelt_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "misspelt.yaml").write_text(COMPOSE.read_text().replace("stop_grace_period", "stop_graceperiod"))
    for file, exit_code in {COMPOSE: 0, tmp_path / "misspelt.yaml": 1}.items():
        program = Path(sys.executable).with_name("check-jsonschema")
        done = subprocess.run(
            [program, "--builtin-schema", "vendor.compose-spec", file], capture_output=True, text=True
        )
        assert done.returncode == exit_code, done.stdout


def test_the_ports_are_those_that_are_listened_on() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items()}
    assert ports["headrace"] == [f"127.0.0.1:{options().port}:{options().port}"]
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"headrace:{options().port}"]}]
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert options().open_metrics, "Prometheus has no key"


def test_what_is_mounted_is_there_and_where_it_is_looked_for() -> None:
    inside = {}
    for service in SERVICES.values():
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            if source.startswith("."):
                assert (COMPOSE.parent / source).exists(), source
                inside[target] = COMPOSE.parent / source
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/headrace.yml").read_text())["providers"]
    assert json.loads((inside[provider["options"]["path"]] / "headrace.json").read_text())["title"] == "Headrace"
    assert f"--config.file={next(iter(inside))}" in SERVICES["prometheus"]["command"]
    assert "/etc/prometheus/rules" in inside


def test_the_server_has_time_to_take_leave_and_few_rights() -> None:
    headrace = SERVICES["headrace"]
    asked = options()
    grace_s = int(headrace["stop_grace_period"].removesuffix("s"))
    assert grace_s > asked.drain_delay + asked.drain_timeout + _FLUSH_S
    assert headrace["read_only"]
    assert headrace["cap_drop"] == ["ALL"]
    assert headrace["security_opt"] == ["no-new-privileges:true"]
    assert {volume.split(":")[1] for volume in headrace["volumes"]} == {"/cache"}
