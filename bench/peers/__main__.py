"""How Headrace fares beside what a user would run instead: llama.cpp's server and `transformers serve`.

Each contestant is started alone for each group of workloads, in turn, round by round, and asked by the client of
`headrace bench`. llama.cpp is built from its source package, and the default model requantised by its own tool, once,
in the user's cache. Stop everything else on the machine first.

workloads:
  prefill       512 tokens in, one out, one request at a time
  decode        the time between the tokens of one request, whose context is 128 tokens on average
  prefix        a second request with the same 512 tokens in front, against the first
  c1, c8, c32   1, 8 and 32 users at once, 128 tokens in and 64 out; at 32 TTFT and memory as well

examples:
  python -P -m bench.peers                                  # everything, writes bench/peers.md and peers.svg
  python -P -m bench.peers --quick                          # that it runs, not how fast
  python -P -m bench.peers --workloads c1 c8 --only Headrace Q4_0
"""

import argparse
import subprocess
import sys
from pathlib import Path

from bench.peers.chart import chart
from bench.peers.contestants import everyone
from bench.peers.results import Results
from bench.peers.rounds import play, turns
from bench.peers.table import conditions, document, limits, ratios_table, values_table
from bench.peers.workloads import WORKLOADS
from model.checkpoints.errors import CheckpointError

FOLDER = Path(__file__).parents[1]
NAMES = [workload.name for workload in WORKLOADS]
EVERYONE = [""]  # every name contains it


def main() -> int:
    options = parser().parse_args()
    workloads = [workload for workload in WORKLOADS if workload.name in options.workloads]
    if options.quick:
        workloads = [workload.quick() for workload in workloads]
    results, status = Results(), 0
    try:
        entrants = [one for one in everyone() if any(part in one.name for part in options.only)]
        if not entrants:
            raise SystemExit("bench.peers: no contestant has such a name")
        play(turns(entrants, workloads, 1 if options.quick else options.rounds), results)
    except (subprocess.CalledProcessError, CheckpointError) as error:
        print(f"bench.peers: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench.peers: interrupted; what follows is what was finished", file=sys.stderr)
        status = 130
    if results.contestants:
        print(values_table(results), ratios_table(results), limits(results), sep="\n\n")
    if status == 0 and not options.quick and options.workloads == NAMES and options.only == EVERYONE:
        (FOLDER / "peers.md").write_text(document(results, conditions(options.rounds)), encoding="utf-8")
        (FOLDER / "peers.svg").write_text(chart(results), encoding="utf-8")
    return status


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -P -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=count, default=3, metavar="N", help="times that everything is run (default: 3)"
    )
    whole = "default: all; a whole run alone writes the files"
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=NAMES, help=f"what is asked ({whole})")
    only_help = "contestants whose name contains one of these (default: all)"
    parser.add_argument("--only", nargs="+", default=EVERYONE, metavar="NAME", help=only_help)
    parser.add_argument("--quick", action="store_true", help="one round of few requests; the figures mean nothing")
    return parser


def count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError("below 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
