"""The README says what the code says."""

import re
from pathlib import Path

from write_clients import COLUMNS, proofs, table

from bench.gpu_check.__main__ import SECTIONS
from server.app import create_app
from server.cli import _parser
from server.config import ServeOptions, options_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_options_table_is_the_codes_own() -> None:
    table = README.split("<!-- options: ")[1].split("-->\n", 1)[1].split("<!-- end of options -->")[0].strip()
    assert table == options_table(ServeOptions), "run: python -P tests/write_options.py"


def test_the_table_of_clients_is_that_of_their_tests() -> None:
    written = README.split("<!-- clients: ")[1].split("-->\n", 1)[1].split("<!-- end of clients -->")[0].strip()
    assert written == table(), "run: python -P tests/write_clients.py"
    files = [path for path in (ROOT / "tests/conformance").rglob("*test*.*") if path.suffix in (".py", ".mjs")]
    assert {what for path in files for what in proofs(path.read_text())} <= set(COLUMNS)


def test_every_path_in_the_tree_exists() -> None:
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith(("| `model/", "| `server/"))]
    for row in rows:
        names = re.findall(r"`([^`]+)`", row)
        folder = Path(names[0]).parent  # names after the first are its neighbours
        for name in names:
            assert any((ROOT / base / name).exists() for base in ("", folder)), name


def test_every_file_that_is_linked_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 20
    for link in links:
        assert (ROOT / link).is_file(), link


def test_every_section_of_the_gpu_check_that_is_named_is_one() -> None:
    table = README.split("| needs a card |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[-2:][0])}
    assert named == set(SECTIONS) - {"environment"}


def test_every_route_in_the_readme_is_served_and_the_other_way_round() -> None:
    named = set(re.findall(r"`(?:GET|POST)? ?(/[a-z0-9_/{}.]+)`", README.split("## The API")[1].split("##")[0]))
    served = {route.path.replace("{model_id:path}", "{id}") for route in create_routes()}
    assert named == served


def create_routes() -> list[object]:
    from server.api.service import AppOptions
    from server.engine.client import EngineClient
    from server.metrics import Metrics

    engine = EngineClient(ServeOptions(), max_queue=1)
    app = create_app(AppOptions(), engine, Metrics(), lambda card: None)  # type: ignore[arg-type, return-value]
    routes: list[object] = []
    for route in app.routes:
        routes += getattr(route, "original_router", route).routes if hasattr(route, "original_router") else [route]
    return routes


def test_every_command_is_in_the_readme() -> None:
    (commands,) = [action for action in _parser()._actions if hasattr(action, "choices") and action.choices]
    for name in commands.choices:
        assert f"| `headrace {name}" in README
