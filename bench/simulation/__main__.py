"""What many replicas would do: the real scheduler and the real routing in virtual time.

parts:
  steps      measures how long the engine's steps take on this machine, and fits a formula to them
  validate   replays traffic against one and two real servers on this machine, and simulates the same
  predict    simulates 1 to 1,000 replicas

Each keeps what it found beside this program; then bench/simulation.md and bench/simulation.svg are written from what
all three have found. `steps` and `validate` need two cores for themselves: stop everything else on the machine first.

examples:
  python -P -m bench.simulation predict    # with the step times that are kept here: a quarter of an hour
  python -P -m bench.simulation            # everything
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.servers import NoStart
from bench.simulation.chart import chart
from bench.simulation.document import document
from bench.simulation.predict import BY_RATE, BY_REPLICAS, BY_WEIGHT, Prediction, predict_all
from bench.simulation.step_time import Measured
from bench.simulation.steps import measure
from bench.simulation.validation import Comparison, validate
from server.config import EngineOptions

HERE = Path(__file__).parent
STEP_TIMES, VALIDATION, PREDICTIONS = (HERE / f"{name}.json" for name in ("step_times", "validation", "predictions"))
REPLICA = EngineOptions(threads=1, kv_memory=1.0)
ROUNDS = 2
RATE, SECONDS = 1.0, 70.0  # of each replica's replayed traffic


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -P -m bench.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    try:
        for part in parts:
            PARTS[part]()
    except NoStart as error:
        print(f"bench.simulation: {error}", file=sys.stderr)
        return 1
    write_page()
    return 0


def steps() -> None:
    _keep(STEP_TIMES, measure(REPLICA, ROUNDS))


def validation() -> None:
    _keep(VALIDATION, validate(_step_times(), RATE, SECONDS))


def predictions() -> None:
    made: list[Prediction] = []
    for prediction in predict_all([*BY_REPLICAS, *BY_RATE, *BY_WEIGHT], _step_times()):
        made.append(prediction)
        _keep(PREDICTIONS, made)


PARTS: dict[str, Callable[[], None]] = {"steps": steps, "validate": validation, "predict": predictions}


def write_page() -> None:
    """From what is kept."""
    kept = {one.scenario: one for one in msgspec.json.decode(PREDICTIONS.read_bytes(), type=list[Prediction])}
    by_replicas, by_rate, by_weight = ([kept[one] for one in each] for each in (BY_REPLICAS, BY_RATE, BY_WEIGHT))
    comparisons = msgspec.json.decode(VALIDATION.read_bytes(), type=list[Comparison])
    page = document(_step_times(), comparisons, by_replicas, by_rate, by_weight)
    HERE.with_suffix(".md").write_text(page, encoding="utf-8")
    HERE.with_suffix(".svg").write_text(chart(by_replicas, by_rate), encoding="utf-8")


def _step_times() -> Measured:
    return msgspec.json.decode(STEP_TIMES.read_bytes(), type=Measured)


def _keep(path: Path, found: object) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
