"""The rules that keep the rooms apart, read off the imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("model", "server") for path in (ROOT / room).rglob("*.py"))

# imported package -> where alone it may be imported
CONFINED = {
    "torch": ("model/",),
    "fastapi": ("server/app.py", "server/api/"),
    "prometheus_client": ("server/metrics.py", "server/scale_out/series.py"),
    "ray": tuple(f"server/scale_out/{name}.py" for name in ("cluster", "deployment", "ingress", "router", "served")),
    "opentelemetry": ("server/tracing.py",),
    "pickle": (),
    "marshal": (),
    "shelve": (),
}
PROCESSES = {f"server/engine/{name}.py" for name in ("loop", "followers", "follower")}  # the engine's, of each rank
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "time.time"}


def modules_imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    name, imported = name_of(path), set(modules_imported(path))
    for package, rooms in CONFINED.items():
        if any(is_within(module, package) for module in imported):
            assert name.startswith(rooms or ("nowhere",)), f"{name} imports {package}"


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path).startswith("model/")], ids=name_of)
def test_the_model_knows_nothing_of_the_server(path: Path) -> None:
    assert not [module for module in modules_imported(path) if is_within(module, "server")]


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path).startswith("server/")], ids=name_of)
def test_the_server_reaches_the_model_in_the_engines_processes_only(path: Path) -> None:
    if name_of(path) in PROCESSES:
        return
    reached = {module for module in modules_imported(path) if is_within(module, "model")}
    assert all(is_within(module, "model.batch") for module in reached), reached


def test_the_contract_imports_nothing_of_ours() -> None:
    imported = set(modules_imported(ROOT / "model/batch.py"))
    assert not [module for module in imported if is_within(module, "model") or is_within(module, "server")]


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path).startswith("model/kernels/")], ids=name_of)
def test_kernels_know_packed_weights_and_nothing_else_of_ours(path: Path) -> None:
    ours = {module for module in modules_imported(path) if is_within(module, "model")}
    assert all(is_within(m, "model.kernels") or is_within(m, "model.quantization") for m in ours), ours


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_runs_data_as_code_or_reads_the_wall_clock(path: Path) -> None:
    allowed = {"time.time"} if name_of(path) == "server/api/sse.py" else set()
    assert not FORBIDDEN_CALLS.intersection(calls(path)) - allowed


def test_every_file_says_first_which_question_it_answers() -> None:
    silent = [
        name_of(path) for path in FILES if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent
