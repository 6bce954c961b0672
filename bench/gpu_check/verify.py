"""Whether whole answers have the same bits in any company: what `headrace verify` says on the device."""

import subprocess
import sys
from collections.abc import Iterator

from bench.gpu_check.section import Failed, Options


def check(options: Options) -> Iterator[str]:
    command = [sys.executable, "-P", "-m", "server.cli", "verify", options.model, "--device", options.device]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.stdout:
        yield f"```\n{run.stdout.strip()}\n```"
    if run.returncode != 0:
        print(run.stderr, file=sys.stderr)
        words = (run.stderr.strip() or run.stdout.strip() or "it said nothing").splitlines()
        raise Failed(words[-1])
