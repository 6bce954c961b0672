"""How the server starts and ends: at once, cleanly, and with one line where it cannot."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support import command, running_server, wait_until

FAILURE_LIMIT_S = 10.0
PROGRESS = ("headrace: loading weights", "headrace: warming up")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_server_and_engine_with_exit_code_0(tiny_model: Path, how: signal.Signals) -> None:
    with running_server("--model", str(tiny_model)) as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        assert children
        assert server.stop(how) == 0
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_an_engine_whose_server_is_killed_leaves_too(tiny_model: Path) -> None:
    with running_server("--model", str(tiny_model)) as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        server.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 5)
        server.process.wait()
        server.process.returncode = 0  # killed by this test, which is no failure of the server


def test_the_port_is_open_at_once_and_readiness_says_how_far_loading_is(tiny_model: Path) -> None:
    with running_server("--model", str(tiny_model), wait=False) as server:
        early = httpx.get(f"{server.url}/health/ready")
        assert early.status_code == 503
        assert early.json()["error"]["code"] == "model_loading"
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        wait_until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 200, 60)


def test_a_taken_port_is_one_line_and_not_a_traceback(tiny_model: Path) -> None:
    with running_server("--model", str(tiny_model), wait=False) as server:
        port = server.url.rsplit(":", 1)[1]
        second = subprocess.run(command("serve", "--port", port), capture_output=True, text=True, timeout=30)
        assert second.returncode == 1
        assert "Address already in use" in second.stderr
        assert len(second.stderr.splitlines()) == 1


def _truncated(model: Path, folder: Path) -> Path:
    path = folder / "cut.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((64, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.write_bytes(path.read_bytes()[:-4096])
    return path


def _without_a_tensor(model: Path, folder: Path) -> Path:
    broken = Path(shutil.copytree(model, folder / "lacking"))
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors")
    return broken


def _of_another_shape(model: Path, folder: Path) -> Path:
    broken = Path(shutil.copytree(model, folder / "misshapen"))
    config = (broken / "config.json").read_text()
    (broken / "config.json").write_text(config.replace('"intermediate_size": 96', '"intermediate_size": 95'))
    return broken


def _of_an_unknown_family(model: Path, folder: Path) -> Path:
    broken = Path(shutil.copytree(model, folder / "unknown"))
    (broken / "config.json").write_text('{"model_type": "perceptron"}')
    return broken


def _with_a_broken_template(model: Path, folder: Path) -> Path:
    broken = Path(shutil.copytree(model, folder / "untold"))
    config = (broken / "tokenizer_config.json").read_text()
    (broken / "tokenizer_config.json").write_text(config.replace("{% endfor %}", "{% endfur %}"))
    return broken


def _torn(model: Path, folder: Path) -> Path:
    broken = Path(shutil.copytree(model, folder / "torn"))
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    return broken


CASES = {
    "missing": (lambda model, folder: folder / "nothing-here", "no such file"),
    "truncated": (_truncated, "cut.gguf"),
    "lacking a tensor": (_without_a_tensor, "model.layers.1.mlp.up_proj.weight"),
    "of another shape": (_of_another_shape, "shape"),
    "of an unknown family": (_of_an_unknown_family, "perceptron"),
    "with a broken chat template": (_with_a_broken_template, "chat template"),
    "torn": (_torn, "model.safetensors"),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_broken_model_is_one_line_within_ten_seconds(case: str, tiny_model: Path, tmp_path: Path) -> None:
    make, reason = CASES[case]
    path = make(tiny_model, tmp_path)
    start = time.monotonic()
    ended = subprocess.run(
        command("serve", "--port", "0", "--model", str(path)), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if line not in PROGRESS]
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert reason in lines[0]
    assert time.monotonic() - start < FAILURE_LIMIT_S


def test_a_users_own_model_and_server_files_do_not_shadow_ours(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("model", "server", "torch", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    command_line = command("generate", "abc", "--model", str(tiny_model), "--max-tokens", "4")
    ended = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "working directory" not in ended.stderr


def test_options_come_from_the_environment_and_the_command_line_overrules_it(tiny_model: Path) -> None:
    environment = {"HEADRACE_SERVED_MODEL_NAME": "from-env", "HEADRACE_MODEL": "/nowhere"}
    with running_server("--model", str(tiny_model), **environment) as server:
        assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "from-env"


def test_a_wrong_option_is_named(tiny_model: Path) -> None:
    ended = subprocess.run(
        command("serve", "--port", "99999"), capture_output=True, text=True, timeout=30, env=os.environ
    )
    assert ended.returncode == 2
    assert ended.stderr.strip() == "headrace: --port: expected int <= 65535"
