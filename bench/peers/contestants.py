"""Who is compared, and how each is started so that it does its best."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from bench.peers import llama_cpp, transformers_serve
from bench.peers.llama_cpp import OTHER_FORMS, SAME_FORM, LlamaCpp
from bench.servers import Command
from model.checkpoints.sources import DEFAULT_MODEL, locate
from model.kernels.cpu import available_cores

HEADRACE = str(Path(sys.executable).with_name("headrace"))
FAITHFUL, FAST, PLAIN = "Headrace", "Headrace, int8", "Headrace, no speculation"
LLAMA_CPP = {form: f"llama.cpp {form}" for form in (SAME_FORM, *OTHER_FORMS)}
TRANSFORMERS = "transformers, fp32"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server under a name. Of its several ways to serve so many users, the one that turns out better counts."""

    name: str
    ways: Callable[[int, int], list[Command]]  # users at once, tokens of the longest request
    model: str | None = None  # to ask for; unset: the first that the server lists
    ignores_eos: bool = True  # it understands ignore_eos


def headrace(name: str, *options: str) -> Contestant:
    command = Command((HEADRACE, "serve", "--log-level", "warning", "--drain-delay", "0", *options), "/health/ready")
    return Contestant(name, lambda users, tokens: [command])


def llama_server(peer: LlamaCpp, name: str, model: Path) -> Contestant:
    """One slot a user, each with room for a whole request; several share their KV cache, or do not."""
    threads = str(available_cores())
    base = (str(peer.programs / "llama-server"), "-m", str(model), "-t", threads, "-fa", "on")

    def ways(users: int, tokens: int) -> list[Command]:
        # The cache of prompts in RAM would copy a slot's state at every request, for prompts that never come back.
        slots = (*base, "-np", str(users), "-c", str(users * tokens), "--cache-ram", "0", "--no-webui")
        kinds = ["--no-kv-unified"] if users == 1 else ["--no-kv-unified", "--kv-unified"]
        return [Command((*slots, kind), "/health") for kind in kinds]

    return Contestant(name, ways)


def transformers(program: Path, folder: Path) -> Contestant:
    """Its list of models is that of the hub's cache, so that ours has to be named."""
    options = ("--continuous-batching", "--dtype", "float32", "--device", "cpu")
    command = Command((str(program), "serve", str(folder), *options), "/health")
    return Contestant(TRANSFORMERS, lambda users, tokens: [command], str(folder), ignores_eos=False)


def everyone() -> list[Contestant]:
    """All that can be had on this machine; who is left out is told of."""
    model = locate(DEFAULT_MODEL, lambda stage, done, total: None)
    peer = llama_cpp.build()
    files = {SAME_FORM: model} | {form: peer.quantized(model, form) for form in OTHER_FORMS}
    entrants = [headrace(FAITHFUL), headrace(FAST, "--activations", "int8"), headrace(PLAIN, "--no-speculation")]
    entrants += [llama_server(peer, LLAMA_CPP[form], file) for form, file in files.items()]
    try:
        entrants.append(transformers(*transformers_serve.prepare(model)))
    except (subprocess.CalledProcessError, PackageNotFoundError) as error:
        print(f"{TRANSFORMERS}: left out, {error}", file=sys.stderr)
    return entrants
