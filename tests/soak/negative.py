"""What does a server make of requests that its own OpenAPI document forbids?

schemathesis reads the document that the server serves and writes, for each operation, requests that break it: a field
of another type or out of its range, one too many or too few, a key or a path of another form. All of its checks must
hold: no 5xx, a status, a content type and a body that the document knows, no success where the body is wrong. No check
and no example is filtered out. The engine stays the same process, and the books of the KV cache stay right.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import schemathesis
from bad_input import KEY
from bytes_model import write_bytes_model
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.schemas import APIOperation
from soak import mutations
from support import RunningServer, running_server

KEYED = {"Authorization": f"Bearer {KEY}"}


@dataclass(slots=True)
class Outcome:
    examples: Counter[str] = field(default_factory=Counter)  # by operation
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def soak(server: RunningServer, examples: int, start: int = 0) -> Outcome:
    """So many examples of each operation that the document describes; what went wrong is in the outcome."""
    outcome, engine = Outcome(), server.engine
    for operation in operations(server.url):
        ask(operation, server.url, examples, start, outcome)
    outcome.faults += mutations.check_server(server, engine)
    return outcome


def operations(url: str) -> list[APIOperation]:
    config = SchemathesisConfig()
    rejection = config.projects.default.checks.negative_data_rejection
    # Some of what it writes is larger than the server takes. It does not count that as a refusal by itself.
    rejection.expected_statuses = [*rejection.expected_statuses, "413"]
    document = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config, headers=KEYED)
    return [found.ok() for found in document.get_all_operations()]


def ask(operation: APIOperation, url: str, examples: int, start: int, outcome: Outcome) -> None:
    """Counts nothing for an operation that takes nothing, which no request can break."""

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(schemathesis.GenerationMode.NEGATIVE))
    def ask_one(case: schemathesis.Case) -> None:
        answer = case.call(base_url=url, headers=KEYED)
        outcome.examples[operation.label] += 1
        outcome.statuses[answer.status_code] += 1
        try:
            case.validate_response(answer, headers=KEYED)
        except (Failure, FailureGroup) as error:
            causes = getattr(error, "exceptions", [error])
            wrong = "; ".join(str(cause) for cause in causes)
            asked = f"{case.path_parameters} {case.query} {case.body!r}"
            outcome.faults.append(f"{operation.label}: {answer.status_code}: {wrong}: {asked}"[:1000])

    try:
        ask_one()
    except Unsatisfiable:
        outcome.examples[operation.label] += 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_bytes_model(Path(folder) / "bytes")
        with running_server("--model", str(model), *mutations.SERVER) as server:
            began = time.monotonic()
            outcome = soak(server, arguments.examples, arguments.seed)
            seconds = time.monotonic() - began
    for label, count in outcome.examples.items():
        print(f"{count:5} {label}" if count else f"      {label}: takes nothing")
    print(f"seed {arguments.seed}, {seconds:.0f} s, {dict(sorted(outcome.statuses.items()))}")
    print(f"{len(outcome.faults)} faults", *outcome.faults[:10], sep="\n")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
