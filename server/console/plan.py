"""`headrace plan`: what a model would take of this machine's memory."""

import sys

from server.config import EngineOptions
from server.console.progress import ProgressBar
from server.engine import loop
from server.engine.messages import Progress


def plan(options: EngineOptions) -> int:
    """Prints the sum from the checkpoint's header, without loading the weights; the exit code."""
    bar = ProgressBar()
    try:
        summary = loop.plan(options, lambda stage, done, total: bar(Progress(stage, done, total, "bytes")))
    except loop.START_ERRORS as error:
        bar.close()
        print(f"headrace: {error}", file=sys.stderr)
        return 1
    bar.close()
    print(summary)
    return 0
