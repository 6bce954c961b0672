"""What --ray takes, and what cannot be had with it."""

import os
import subprocess
from pathlib import Path

import pytest
from support import command

from server.config import OptionError, ServeOptions
from server.scale_out.wish import Wish, wish_of


@pytest.mark.parametrize(("asked", "wish"), [("2", Wish(2, 2)), ("1-4", Wish(1, 4)), ("3-3", Wish(3, 3))])
def test_a_number_or_a_range(asked: str, wish: Wish) -> None:
    assert wish_of(ServeOptions(ray=asked)) == wish


@pytest.mark.parametrize("asked", ["", "0", "-1", "two", "1-", "4-1", "1-2-3", "1001", "²"])
def test_anything_else_is_refused_by_name(asked: str) -> None:
    with pytest.raises(OptionError, match="--ray"):
        wish_of(ServeOptions(ray=asked))


def test_what_replicas_are_not_told_of_is_refused() -> None:
    for fields in ({"adapter": "a=b"}, {"adapter_folders": "/adapters"}):
        (name,) = fields
        with pytest.raises(OptionError, match=f"--{name.replace('_', '-')}: cannot be had with --ray"):
            wish_of(ServeOptions(ray="2", **fields))


def test_replicas_are_nobody_elses_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="torchrun"):
        wish_of(ServeOptions(ray="2", tensor_parallel=2))


def test_without_ray_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command("serve", "--ray", "2"), env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "headrace: --ray: needs Ray, which `pip install 'headrace[ray]'` brings\n"
