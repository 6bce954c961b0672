"""The process of one section: prints what it yields as it comes, so that an end in between loses none of it."""

import signal
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module

import msgspec

from bench.gpu_check.section import NOT_RUN, Failed, NotRun, Options


def main() -> int:
    name, options = sys.argv[1], msgspec.json.decode(sys.argv[2], type=Options)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # which ends the servers that it runs
    try:
        parts: Iterator[str] = import_module(f"bench.gpu_check.{name}").check(options)
        for part in parts:
            print(part, end="\n\n", flush=True)
    except NotRun as reason:
        print(reason, file=sys.stderr)
        return NOT_RUN
    except Failed as fault:
        print(fault, file=sys.stderr)
        return 1
    except Exception as error:
        traceback.print_exc()
        first = str(error).splitlines()[:1]
        print(f"{type(error).__name__}: {''.join(first)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
