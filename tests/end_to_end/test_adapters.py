"""Adapters as operators and clients meet them: named at the start, loaded and unloaded while others generate."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import Answers, Body, ask, told
from random_adapters import write_adapter
from support import TINY, RunningServer, command, running_server

from server.config import OptionError, named_folders

KEY = {"Authorization": "Bearer secret"}
DIM, HIDDEN, KV = TINY["hidden_size"], TINY["intermediate_size"], 32
SHAPES = {
    f"model.layers.{layer}.{module}": shape
    for layer in range(2)
    for module, shape in {
        "self_attn.q_proj": (DIM, DIM),
        "self_attn.k_proj": (KV, DIM),
        "self_attn.o_proj": (DIM, DIM),
        "mlp.gate_proj": (HIDDEN, DIM),
        "mlp.down_proj": (DIM, HIDDEN),
    }.items()
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four adapters, and three folders that hold none of any use."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("red", "blue", "green", "violet")):
        write_adapter(root / name, SHAPES, seed)
    write_adapter(root / "dora", SHAPES, 3, use_dora=True)
    write_adapter(root / "large", {"model.layers.0.mlp.up_proj": (HIDDEN, 2 * DIM)}, 4)
    (root / "empty").mkdir()
    (root / "out").symlink_to("/")
    return root


def body(model: str | None, place: int = 0, **fields: Any) -> Body:
    asked = {"prompt": f"{place} green bottles", "max_tokens": 24, "ignore_eos": True, "temperature": 0, "logprobs": 1}
    return asked | ({"model": model} if model else {}) | fields


def receipt(answer: httpx.Response) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', answer.headers["x-headrace-receipt"]))


@pytest.fixture(scope="module")
def server(tiny_model: Path, folders: Path) -> Iterator[RunningServer]:
    named = f"red={folders / 'red'}, org/blue={folders / 'blue'}"
    arguments = ("--model", str(tiny_model), "--check-invariants", "--api-key", "secret", "--open-metrics")
    with running_server(*arguments, "--adapter", named, "--adapter-folders", str(folders)) as server:
        yield server
        assert server.metric("headrace_kv_invariant_violations_total") == 0


def call(server: RunningServer, what: str, **fields: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{what}_lora_adapter", json=fields, headers=KEY, timeout=60)


def post(server: RunningServer, path: str, asked: Body) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=asked, headers=KEY, timeout=60)


def complete(server: RunningServer, model: str | None, **fields: Any) -> httpx.Response:
    return post(server, "/v1/completions", body(model, **fields))


def models(server: RunningServer) -> list[str]:
    return [model["id"] for model in httpx.get(f"{server.url}/v1/models", headers=KEY).json()["data"]]


def test_adapters_named_at_the_start_are_models(server: RunningServer) -> None:
    listed = {model["id"]: model for model in httpx.get(f"{server.url}/v1/models", headers=KEY).json()["data"]}
    assert list(listed) == ["tiny", "red", "org/blue"]
    assert [listed["org/blue"][field] for field in ("root", "parent")] == ["blue", "tiny"]
    for name, model in listed.items():
        assert httpx.get(f"{server.url}/v1/models/{name}", headers=KEY).json() == model
    told = httpx.get(f"{server.url}/v1/capabilities", headers=KEY).json()["model"]
    assert [told["id"], *told["adapters"]] == list(listed)
    assert httpx.get(f"{server.url}/v1/models/green", headers=KEY).status_code == 404
    answers = {name: complete(server, name) for name in (None, *listed)}
    told = {name: answer.json()["choices"] for name, answer in answers.items()}
    assert told[None] == told["tiny"]
    assert told["tiny"] != told["red"] != told["org/blue"] != told["tiny"]
    assert answers["red"].json()["model"] == "red"
    digests = {name: receipt(answer).get("adapter") for name, answer in answers.items()}
    assert digests["tiny"] is digests[None] is None
    assert len({digests["red"], digests["org/blue"]}) == 2
    assert len({answer.json()["system_fingerprint"] for answer in answers.values()}) == 3
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "model": "red"}
    assert post(server, "/v1/chat/completions", chat).json()["model"] == "red"
    for path, asked in (("responses", {"input": "Hi"}), ("messages", chat)):
        assert post(server, f"/v1/{path}", asked | {"model": "red"}).json()["model"] == "red"
    vectors = [
        post(server, "/v1/embeddings", {"input": "Hi", "model": name}).json()["data"] for name in ("tiny", "red")
    ]
    assert vectors[0] != vectors[1]
    unknown = complete(server, "green")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert post(server, "/tokenize", {"model": "red", "prompt": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("named", "says"),
    [("a={}/dora", "use_dora True is not supported"), ("tiny={}/red", "the model itself is served under this name")],
)
def test_an_adapter_that_cannot_be_used_ends_the_start(tiny_model: Path, folders: Path, named: str, says: str) -> None:
    arguments = ["--model", str(tiny_model), "--port", "0", "--no-spare-engine", "--adapter", named.format(folders)]
    ended = subprocess.run(command("serve", *arguments), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("named", ["a", "a=", "=b", "a b=c", "a=b,a=c"])
def test_an_option_that_names_no_folders_is_refused(named: str) -> None:
    with pytest.raises(OptionError, match="--adapter"):
        named_folders(named)


def test_a_name_can_be_given_away_again_and_finds_nothing_of_the_one_before(
    server: RunningServer, folders: Path
) -> None:
    folder = folders / "changing"
    shutil.copytree(folders / "red", folder)
    prompt = "the same long prompt for both, of many tokens"
    loaded = call(server, "load", lora_name="mine", lora_path="changing")
    assert (loaded.status_code, loaded.json()["parent"]) == (200, "tiny")
    again = call(server, "load", lora_name="mine", lora_path=str(folder))
    assert (again.status_code, again.json()["error"]["param"]) == (400, "lora_name")
    first = [complete(server, "mine", prompt=prompt).json() for _ in range(2)]
    assert first[1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert call(server, "unload", lora_name="mine").status_code == 200
    assert call(server, "unload", lora_name="mine").status_code == 404
    assert complete(server, "mine").status_code == 404
    write_adapter(folder, SHAPES, seed=7)
    assert call(server, "load", lora_name="mine", lora_path="changing").status_code == 200
    second = complete(server, "mine", prompt=prompt).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["choices"] != first[0]["choices"]
    assert call(server, "unload", lora_name="mine").status_code == 200
    assert models(server) == ["tiny", "red", "org/blue"]


async def test_a_killed_engines_successor_goes_on_with_all_adapters(server: RunningServer) -> None:
    """With those of the start, with one that was loaded since, and with one that was unloaded meanwhile."""
    for name, folder in (("lasting", "green"), ("brief", "violet")):
        assert call(server, "load", lora_name=name, lora_path=folder).status_code == 200
    asked = [None, "red", "org/blue", "lasting", "brief"] * 2
    bodies = [body(model, place, max_tokens=120, stream=True) for place, model in enumerate(asked)]
    golden = await ask(server.url, bodies, KEY)
    answers = Answers(server.url, bodies, KEY)
    asking = asyncio.create_task(answers.gather())
    await answers.arrived(lambda some: all(some.events))
    assert call(server, "unload", lora_name="brief").status_code == 200
    os.kill(server.engine, signal.SIGKILL)
    assert [told(events) for events in await asking] == golden
    assert models(server) == ["tiny", "red", "org/blue", "lasting"]
    assert complete(server, "brief").status_code == 404
    assert call(server, "unload", lora_name="lasting").status_code == 200


def test_what_cannot_be_loaded_is_told_without_a_path_and_leaves_all_as_it_was(server: RunningServer) -> None:
    elsewhere = "there is no such folder within those"
    for path, says in (
        ("dora", "use_dora True is not supported"),
        ("large", "module model.layers.0.mlp.up_proj goes from 128 to 96 numbers, the model's from 64 to 96"),
        ("empty", "adapter_config.json: No such file or directory"),
        ("nowhere", elsewhere),
        ("..", elsewhere),
        ("/", elsewhere),
        ("out", elsewhere),
        ("out/etc", elsewhere),
        ("red/adapter_config.json", elsewhere),
        ("x" * 4000, elsewhere),
        ("red\0", elsewhere),
    ):
        answer = call(server, "load", lora_name="no", lora_path=path)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path"), path
        assert says in answer.json()["error"]["message"]
        assert "/tmp" not in answer.text
    for name in ("", "a b", "tiny", "x" * 129, "é"):
        answer = call(server, "load", lora_name=name, lora_path="red")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_name"), name
    assert complete(server, "tiny").status_code == 200
