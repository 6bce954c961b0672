"""The RayService: valid, and its application one that our code makes of it."""

import copy
import tomllib
from typing import Any

import pytest
import yaml
from custom_resources import SCHEMAS
from jsonschema import Draft202012Validator, ValidationError
from monitoring import DEPLOY, ROOT

from server.config import OptionError

pytestmark = [pytest.mark.deploy, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # of Ray's own modules

KUBERNETES = "1.34"


@pytest.fixture
def manifest() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "ray/rayservice.yaml").read_text())


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = manifest["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def validate(manifest: dict[str, Any]) -> None:
    import kubernetes_validate  # only `make deploy-test` installs these two
    from ray.serve.schema import ServeDeploySchema

    Draft202012Validator(SCHEMAS["ray.io/v1", "RayService"]).validate(manifest)
    for group in groups(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod"} | copy.deepcopy(group["template"])
        pod["metadata"]["name"] = "pod"
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))


def test_it_is_valid(manifest: dict[str, Any]) -> None:
    validate(manifest)


def test_a_misspelt_field_is_seen(manifest: dict[str, Any]) -> None:
    """What the check above is worth."""
    cluster = manifest["spec"]["rayClusterConfig"]
    pods = [group["template"]["spec"] for group in groups(manifest)]
    for place in (manifest["spec"], cluster, *groups(manifest), *pods, *(pod["containers"][0] for pod in pods)):
        place["misspelt"] = 1
        with pytest.raises(ValidationError):
            validate(manifest)
        del place["misspelt"]


def test_our_code_makes_the_application(manifest: dict[str, Any]) -> None:
    from server.scale_out.ingress import application

    (described,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    assert described["import_path"] == f"{application.__module__}:{application.__name__}"
    application(described["args"])
    for wrong in ({"misspelt": 1}, {"port": 8000}, {"record": "file"}, {"threads": None}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            application(described["args"] | wrong)


def test_a_replica_fits_its_pod_and_has_time_to_take_leave(manifest: dict[str, Any]) -> None:
    (described,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    arguments = described["args"]
    (workers,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["cpu"]) == arguments["threads"]
    assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) > arguments["kv_memory"]
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > arguments["drain_timeout"]
    least, most = map(int, arguments["ray"].split("-"))
    assert (workers["minReplicas"], workers["maxReplicas"]) == (least, most)


def test_versions_are_those_of_the_project(manifest: dict[str, Any]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for group in groups(manifest):
        assert [each["image"] for each in group["template"]["spec"]["containers"]] == [f"headrace-ray:{version}"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={manifest['spec']['rayClusterConfig']['rayVersion']}" in pins
