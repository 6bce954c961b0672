"""An engine process with faults that prompts ask for: `server.engine.loop` with another runner at its seam.

A prompt that holds one of the words below brings the fault about once it has some output. Four paths come from the
environment: ONCE, a file that the first hang or broken device leaves so that it stays the only one; DIE, a file in
whose presence the process ends at once; ARRIVALS and GATE, FIFOs: every step gives a byte to the one and, before it
computes, takes one from the other.
"""

import os
import signal
import sys
import time
from pathlib import Path

if Path(os.environ.get("DIE", "/nowhere")).exists():
    sys.exit(7)

from model.batch import Batch, Chunk, StepResult
from model.kv_cache import KVCache
from model.loading import OpenModel, Report, load
from model.memory import MemoryPlan
from model.runner import Runner
from server.engine.loop import main

AFTER_TOKENS = 5
FIRST = ord("!")  # the tiny tokenizer's token 0


class FaultyRunner:
    """A runner that does its work, unless a prompt says otherwise."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.is_broken = False  # as a device is that fails once and for all
        self.gate = [os.open(os.environ[name], os.O_RDWR) for name in ("ARRIVALS", "GATE") if name in os.environ]

    @property
    def cache(self) -> KVCache:
        return self.runner.cache

    @property
    def largest_step_s(self) -> float:
        return self.runner.largest_step_s

    @property
    def memory(self) -> MemoryPlan | None:
        return self.runner.memory

    def record_more(self) -> bool:
        return self.runner.record_more()

    def run(self, batch: Batch) -> StepResult:
        if self.gate:
            os.write(self.gate[0], b".")
            os.read(self.gate[1], 1)
        for chunk in batch.chunks:
            if len(chunk.tokens) - chunk.prompt_length >= AFTER_TOKENS:
                prompt = "".join(chr(FIRST + token) for token in chunk.tokens[: chunk.prompt_length])
                self.disturb(chunk, prompt, is_alone=len(batch.chunks) == 1)
        if self.is_broken:
            raise RuntimeError("the device is broken")
        return self.runner.run(batch)

    def disturb(self, chunk: Chunk, prompt: str, is_alone: bool) -> None:
        if "KILL" in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if "RAISE" in prompt:
            raise RuntimeError("as the prompt asked for")
        if "NAN" in prompt:
            self.cache.poison(chunk.blocks[:1])
        if "HANG" in prompt and self.is_first():
            time.sleep(3600)
        if "BREAK" in prompt and not is_alone and self.is_first():  # of one alone it would be taken for its own fault
            self.is_broken = True

    def is_first(self) -> bool:
        once = Path(os.environ["ONCE"])
        is_first = not once.exists()
        once.touch()
        return is_first


def load_faulty(model: OpenModel, memory: MemoryPlan, report: Report) -> FaultyRunner:
    return FaultyRunner(load(model, memory, report))


if __name__ == "__main__":
    sys.exit(main(load_faulty))
