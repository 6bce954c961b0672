"""A tiny random model, and a real server as a child process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from server.engine.messages import ModelCard

START_TIMEOUT_S = 120.0
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TINY = {
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "eos_token_id": 258,
}


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|start|>", "<|end|>"])
    return tokenizer


def printable_card() -> ModelCard:
    """The text side of a model of 96 tokens: ASCII's printable characters, then the end."""
    symbols = ["Ġ", *map(chr, range(0x21, 0x7F))]  # as ByteLevel writes the blank
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return ModelCard(
        name="printable",
        family="none",
        vocab_size=96,
        context_length=512,
        dim=64,
        tokenizer=tokenizer.to_str(),
        chat_template=None,
        special_tokens={},
        eos_ids=[95],
    )


def write_tiny_model(folder: Path, seed: int = 0, config: dict[str, Any] = TINY) -> Path:
    """A Llama with random weights, large enough to be opinionated, with a tokenizer of bytes."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.2) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    dim, hidden, kv = config["hidden_size"], config["intermediate_size"], 32
    tensors = {
        "model.embed_tokens.weight": random(config["vocab_size"], dim, scale=1.0),
        "model.norm.weight": torch.ones(dim),
        "lm_head.weight": random(config["vocab_size"], dim, scale=0.5),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes = {"self_attn.q_proj": (dim, dim), "self_attn.k_proj": (kv, dim), "self_attn.v_proj": (kv, dim)}
        shapes |= {"self_attn.o_proj": (dim, dim), "mlp.gate_proj": (hidden, dim), "mlp.up_proj": (hidden, dim)}
        shapes |= {"mlp.down_proj": (dim, hidden)}
        tensors |= {f"model.layers.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(dim)
    return write_model(folder, config, tensors)


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    """With the tokenizer of bytes beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    words = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


@dataclass(frozen=True, slots=True)
class RunningServer:
    process: subprocess.Popen[str]
    url: str

    def metric(self, name: str) -> float:
        """The value of a series, named without its labels for the sum over them."""
        series = [line.rpartition(" ") for line in httpx.get(f"{self.url}/metrics").text.splitlines()]
        values = [float(value) for full_name, _, value in series if name in (full_name, full_name.partition("{")[0])]
        assert values, f"no series {name}"
        return sum(values)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def engine(self) -> int:
        """The pid of the engine process; there is no spare."""
        (pid,) = self.children
        return pid

    @property
    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(30)


def command(*arguments: str) -> list[str]:
    """The installed command, as a user calls it."""
    return [str(Path(sys.executable).with_name("headrace")), *arguments]


@contextlib.contextmanager
def running_server(
    *arguments: str, wait: bool = True, program: tuple[str, ...] = (), exit_code: int = 0, **environment: str
) -> Iterator[RunningServer]:
    """`headrace serve`, or a program like it, on a free port, ended by SIGTERM unless it has ended before."""
    arguments = ("--drain-delay", "0", "--no-spare-engine", *arguments)
    process = subprocess.Popen(
        [*(program or command("serve")), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    reader = None
    try:
        server = RunningServer(process, _announced_url(process))
        reader = threading.Thread(target=_read_on, args=[process])
        reader.start()
        if wait:
            wait_until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 200, START_TIMEOUT_S)
        yield server
        assert server.stop() == exit_code
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if reader is not None:
            reader.join()
        process.stdout.close()


def _announced_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if "listening" in line:
            return next(word.removeprefix("url=") for word in line.split() if word.startswith("url="))
    raise AssertionError(f"the server ended with {process.wait()} before it listened")


def _read_on(process: subprocess.Popen[str]) -> None:
    """Lets the server log as much as it likes: it would wait for room in the pipe."""
    assert process.stdout is not None
    for _ in process.stdout:
        pass


def patient_client(url: str) -> httpx.AsyncClient:
    """Waits as long as it takes, and reuses no connection at the moment at which the server closes it as idle."""
    limits = httpx.Limits(max_connections=None, keepalive_expiry=1.0)
    return httpx.AsyncClient(base_url=url, timeout=None, limits=limits)


def wait_until(is_true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
