"""An engine whose answers depend on what befalls it, in the way that the environment's FAULT names."""

import os
import sys

import msgspec

from model.loading import OpenModel, Report, load
from model.memory import MemoryPlan
from model.runner import Runner
from server.engine import loop
from server.engine.messages import Submit
from server.engine.sequence import Sequence

FAULT = os.environ["FAULT"]
MANY_ROWS = 16


def load_unexact(model: OpenModel, memory: MemoryPlan, report: Report) -> Runner:
    """With "batch", the last bits of a row depend on how many rows there are."""
    runner = load(model, memory, report)
    logits = runner.transformer.logits
    if FAULT == "batch":
        runner.transformer.logits = lambda hidden: logits(hidden) * (1 + 1e-6 * (len(hidden) > MANY_ROWS))
    return runner


class ForgetfulSequence(Sequence):
    """With "resume", what was said last before the engine's end is forgotten."""

    @classmethod
    def of(cls, order: Submit) -> Sequence:
        return Sequence.of(msgspec.structs.replace(order, output=order.output[:-1]))


if __name__ == "__main__":
    if FAULT == "resume":
        loop.Sequence = ForgetfulSequence
    sys.exit(loop.main(load_unexact))
