"""The manifests: what kustomize makes of them is valid, and says of the server what the server says of itself."""

import copy
import os
import re
import shutil
import subprocess
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from custom_resources import SCHEMAS
from jsonschema import Draft202012Validator, ValidationError
from monitoring import DEPLOY, ROOT, exposed_names, series_named
from support import RunningServer

from server.config import ServeOptions, options_of, read
from server.departure import _FLUSH_S

pytestmark = pytest.mark.deploy

KUBERNETES = "1.34"
MANIFESTS = DEPLOY / "kubernetes"
FREE = ("labels", "matchLabels", "requests", "limits")
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())

Manifest = dict[str, Any]


def built(folder: Path) -> list[Manifest]:
    """What kustomize makes of a folder."""
    kubectl, kustomize = shutil.which("kubectl"), shutil.which("kustomize")
    assert kubectl or kustomize, "building the manifests needs kubectl (1.27 or newer) or kustomize"
    command = [kubectl, "kustomize", folder] if kubectl else [kustomize, "build", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns"
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return built(MANIFESTS / "overlays" / request.param)


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The cpu overlay with the component for keys, as an operator would combine them."""
    folder = tmp_path_factory.mktemp("with-keys")
    overlay, component = (os.path.relpath(MANIFESTS / part, folder) for part in ("overlays/cpu", "components/api-keys"))
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [overlay], "components": [component]}))
    return built(folder)


def validate(manifest: Manifest) -> None:
    import kubernetes_validate  # only `make deploy-test` installs it

    schema = SCHEMAS.get((manifest["apiVersion"], manifest["kind"]))
    if schema is None:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    else:
        Draft202012Validator(schema).validate(manifest)


def the(kind: str, manifests: list[Manifest]) -> Manifest:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def container(manifests: list[Manifest]) -> Manifest:
    (only,) = the("Deployment", manifests)["spec"]["template"]["spec"]["containers"]
    return only


def options(manifests: list[Manifest]) -> ServeOptions:
    """Those that a pod's environment gives the server; raises where one is unknown or has a value it cannot take."""
    given = {entry["name"]: entry.get("value", "4") for entry in container(manifests)["env"]}
    assert given.keys() <= {option.variable for option in options_of(ServeOptions)}
    return read(ServeOptions, Namespace(), given)


def test_every_manifest_is_valid(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        validate(manifest)


def test_a_misspelt_field_is_seen_wherever_it_stands(manifests: list[Manifest]) -> None:
    """What the check above is worth."""
    for manifest in manifests:
        for number in range(len(objects(copy.deepcopy(manifest)))):
            broken = copy.deepcopy(manifest)
            objects(broken)[number]["misspelt"] = 1
            with pytest.raises(ValidationError):
                validate(broken)


def objects(tree: Any) -> list[Manifest]:
    """Those of a manifest, but for maps whose keys are free."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = [tree] if isinstance(tree, dict) else []
    return found + [each for key, child in children if key not in FREE for each in objects(child)]


def test_the_probes_ask_what_the_server_answers(manifests: list[Manifest], server: RunningServer) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(manifests)["ports"]}
    assert ports == {"http": options(manifests).port}
    for kind, path in {"startup": "startup", "liveness": "live", "readiness": "ready"}.items():
        probe = container(manifests)[f"{kind}Probe"]
        assert probe["httpGet"] == {"path": f"/health/{path}", "port": "http"}
        assert httpx.get(server.url + probe["httpGet"]["path"]).status_code == 200


def test_what_others_scrape_and_scale_by_is_there(manifests: list[Manifest], server: RunningServer) -> None:
    exposed = exposed_names(httpx.get(f"{server.url}/metrics").text)
    assert {"vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"} <= exposed
    for manifest in manifests:
        assert series_named(yaml.safe_dump(manifest)) <= exposed
        if manifest["kind"] == "PodMonitor":
            (endpoint,) = manifest["spec"]["podMetricsEndpoints"]
            assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    assert series_named((MANIFESTS / "overlays/autoscaled-hpa/prometheus-adapter-values.yaml").read_text()) <= exposed


def test_whoever_selects_pods_or_a_deployment_finds_ours(manifests: list[Manifest]) -> None:
    labels = the("Deployment", manifests)["spec"]["template"]["metadata"]["labels"]
    for manifest in manifests:
        spec = manifest["spec"]
        if selector := spec.get("selector"):
            assert selector.get("matchLabels", selector).items() <= labels.items(), manifest["kind"]
        if target := spec.get("scaleTargetRef"):
            assert target["name"] == the("Deployment", manifests)["metadata"]["name"]
        for port in spec.get("targetPorts", ()):
            assert port["number"] == options(manifests).port
        for port in spec.get("ports", ()):
            assert port["targetPort"] == "http"


def test_a_pod_has_time_to_take_leave(manifests: list[Manifest]) -> None:
    asked = options(manifests)
    pod = the("Deployment", manifests)["spec"]["template"]["spec"]
    before_the_signal = container(manifests).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed = before_the_signal + asked.drain_delay + asked.drain_timeout + _FLUSH_S
    assert pod["terminationGracePeriodSeconds"] > needed
    probe = container(manifests)["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < asked.drain_delay, "balancers turn away too late"


def test_a_pod_may_do_no_more_than_it_must(manifests: list[Manifest]) -> None:
    """The Pod Security Standard "restricted", and a root file system that stays as it is."""
    pod = the("Deployment", manifests)["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container(manifests)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container(manifests)["volumeMounts"]} == {"/cache", "/tmp"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


def test_the_image_is_of_this_version(manifests: list[Manifest]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container(manifests)["image"].removesuffix("-cuda") == f"headrace:{version}"


def test_keys_come_from_a_secret(with_keys: list[Manifest]) -> None:
    for manifest in with_keys:
        validate(manifest)
    asked = options(with_keys)
    pod = the("Deployment", with_keys)["spec"]["template"]["spec"]
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    mounts = {mount["name"]: mount["mountPath"] for mount in container(with_keys)["volumeMounts"]}
    assert secrets == {"keys": {"secretName": "headrace-keys", "defaultMode": 0o440}}
    assert asked.api_key_file == f"{mounts['keys']}/keys"
    assert asked.open_metrics


def test_the_readmes_command_makes_rules_for_the_operator() -> None:
    (command,) = re.findall(r"^for part in alerts recording.*?^done", (DEPLOY / "README.md").read_text(), re.M | re.S)
    command = command.replace("kubectl apply --filename -", "sed '1i---'")
    said = subprocess.run(["bash", "-euc", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    manifests = list(yaml.safe_load_all(said))
    assert [manifest["metadata"]["name"] for manifest in manifests] == ["headrace-alerts", "headrace-recording"]
    for manifest in manifests:
        validate(manifest)
