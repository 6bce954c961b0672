"""A model shared by two processes over gloo, as clients see it: one model, whichever process dies."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import transformers as hf
from asking import Answers, Body, ask, told
from families import FAMILIES, GEMMA, lively
from support import START_TIMEOUT_S, RunningServer, byte_tokenizer, command, running_server, wait_until

from server.config import OptionError
from server.engine.ranks import place_of

ON_TWO = ("--tensor-parallel", "2")
BYTES = {"vocab_size": 259, "eos_token_id": 258}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 9.0}
MODELS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "a mixture of experts": lambda: hf.Qwen3MoeConfig(**FAMILIES["qwen3_moe"]().to_dict() | BYTES),
    "a tied head and one KV head": lambda: hf.Gemma2Config(**{**GEMMA, **CAPS, **BYTES, "num_key_value_heads": 1}),
}


def bodies(max_tokens: int) -> list[Body]:
    """Greedy, the last with a prompt of several chunks."""
    prompts = ["two", "ranks answer", "as one does", "a longer prompt " * 30]
    same = {"temperature": 0, "ignore_eos": True, "max_tokens": max_tokens, "stream": True}
    return [{"prompt": prompt, **same} for prompt in prompts]


def follower(server: RunningServer) -> int:
    """The pid of rank 1, which the engine has started."""
    (pid,) = Path(f"/proc/{server.engine}/task/{server.engine}/children").read_text().split()
    return int(pid)


async def test_whichever_rank_dies_or_stops_no_token_changes(tiny_server: RunningServer, tiny_model: Path) -> None:
    golden = await ask(tiny_server.url, bodies(200))
    blows = [
        (RunningServer.engine.fget, signal.SIGKILL),
        (follower, signal.SIGKILL),
        (follower, signal.SIGSTOP),
    ]
    with running_server("--model", str(tiny_model), *ON_TWO, "--watchdog", "2", "--check-invariants") as server:
        for restarts, (victim, blow) in enumerate(blows, 1):
            answers = Answers(server.url, bodies(200))
            asking = asyncio.create_task(answers.gather())
            await answers.arrived(lambda answers: answers.count >= 40)
            before = follower(server)
            os.kill(victim(server), blow)
            assert [told(events) for events in await asking] == golden
            assert server.metric("headrace_engine_restarts_total") == restarts
            wait_until(lambda before=before: not Path(f"/proc/{before}").exists())  # nor is a stopped one left behind
        assert server.metric("headrace_kv_invariant_violations_total") == 0


@pytest.mark.parametrize("name", MODELS)
async def test_two_ranks_say_what_one_says(name: str, tmp_path: Path) -> None:
    lively(MODELS[name]()).save_pretrained(tmp_path)
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with running_server("--model", str(tmp_path)) as one, running_server("--model", str(tmp_path), *ON_TWO) as two:
        alone, shared = [await ask(server.url, bodies(20)[:3]) for server in (one, two)]  # short: so are their contexts
    assert [answer["finish_reason"] for answer in alone] == [["length"]] * 3
    assert shared == alone


def test_torchrun_starts_the_ranks_of_two_machines(default_model: Path, tmp_path: Path) -> None:
    """Each of two torchruns has one of them, and the same command runs on both."""
    serve = command("serve", "--model", str(default_model), *ON_TWO, "--port", "0", "--drain-delay", "0")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port))
    logs = [tmp_path / "0", tmp_path / "1"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    torchrun = [str(Path(sys.executable).with_name("torchrun")), *where, "--no-python"]
    machines = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            on_rank = [*torchrun, "--node-rank", str(rank), *serve]
            machines.append(subprocess.Popen(on_rank, stdout=out, env=environment))
    try:
        wait_until(lambda: "ready" in logs[0].read_text(), START_TIMEOUT_S)
        (url,) = re.findall(r"url=(\S+)", logs[0].read_text())
        fields = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        answer = httpx.post(f"{url}/v1/completions", json=fields, timeout=60)
        assert answer.json()["choices"][0]["text"].startswith(" Paris.")
        assert '+tp2"' in answer.headers["x-headrace-receipt"]
        (server,) = Path(f"/proc/{machines[0].pid}/task/{machines[0].pid}/children").read_text().split()
        os.kill(int(server), signal.SIGTERM)
        assert [machine.wait(30) for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()


@pytest.mark.parametrize(
    ("environment", "refusal"),
    [
        ({"WORLD_SIZE": "3", "RANK": "0"}, "--tensor-parallel: 2 ranks were asked for, and WORLD_SIZE is 3"),
        ({"WORLD_SIZE": "2", "RANK": "one"}, "--tensor-parallel: the environment's ranks make no sense"),
    ],
)
def test_ranks_that_make_no_sense_are_refused(environment: dict[str, str], refusal: str) -> None:
    with pytest.raises(OptionError, match=refusal):
        place_of(2, environment)


def test_a_model_that_two_ranks_cannot_share_ends_the_server_in_one_line(
    tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_server("--model", str(tiny_model), "--tensor-parallel", "5", wait=False, exit_code=1) as server:
        server.process.wait(60)
    lines = [line for line in capfd.readouterr().err.splitlines() if "tensor-parallel" in line]
    assert lines == [
        "headrace: tensor-parallel: the heads that share a KV head can be cut into 2 parts, too few for 3 ranks"
    ]
