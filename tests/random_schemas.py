"""Random JSON schemas, and how many answers to them, from a running server, follow them."""

import asyncio
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker, ValidationError

Schema = dict[str, Any]

PATTERNS = [r"^[a-z]{1,6}$", r"^\d{3}-\d{2}$", r"^(red|green|blue)+$", r"^[A-Z][a-z ]*\.$", r"^é?[^\"x]{0,5}$"]
# Beyond are planes without a character, and vocabularies without a token for the byte that they begin with.
CHARACTERS = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"])
NAMES = st.text(CHARACTERS, min_size=1, max_size=6)
CONSTANTS = st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), NAMES, st.just([]), st.just({"a": [1]}))


@st.composite
def _integers(draw: st.DrawFn) -> Schema:
    low = draw(st.integers(-1000, 1000))
    return draw(
        st.sampled_from(
            [
                {"minimum": low, "maximum": low + draw(st.integers(0, 500))},
                {"exclusiveMinimum": low, "maximum": low + 70000},
                {"minimum": low, "maximum": low + 10, "type": ["integer", "null"]},
            ]
        )
    )


@st.composite
def _strings(draw: st.DrawFn) -> Schema:
    least = draw(st.integers(0, 5))
    lengths = {"minLength": least, "maxLength": least + draw(st.integers(0, 8))}
    pattern = {"pattern": draw(st.sampled_from(PATTERNS)), "maxLength": 12}
    return {"type": "string"} | draw(
        st.sampled_from([lengths, pattern, {"format": "date"}, {"format": "ipv4"}, {"format": "uuid"}])
    )


LEAVES: st.SearchStrategy[Schema] = st.one_of(
    _integers().map(lambda bounds: {"type": "integer"} | bounds),
    st.integers(-50, 50).map(lambda low: {"type": "number", "minimum": low, "maximum": low + 2.5}),
    _strings(),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    CONSTANTS.map(lambda value: {"const": value}),
    st.lists(CONSTANTS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.just({"$ref": "#/$defs/tree"}),
    st.just({"$ref": "#/$defs/kind"}),
)


@st.composite
def _arrays(draw: st.DrawFn, items: st.SearchStrategy[Schema]) -> Schema:
    least = draw(st.integers(0, 2))
    schema: Schema = {"type": "array", "items": draw(items), "minItems": least, "maxItems": least + 2}
    if draw(st.booleans()):
        schema |= {"prefixItems": [draw(items)]}
    return schema


@st.composite
def _objects(draw: st.DrawFn, values: st.SearchStrategy[Schema]) -> Schema:
    properties = draw(st.dictionaries(NAMES, values, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    others = draw(st.sampled_from([False, False, {"type": "boolean"}]))
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": others}


INNER = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        _arrays(inner), _objects(inner), st.lists(inner, min_size=1, max_size=3).map(lambda of: {"anyOf": of})
    ),
    max_leaves=6,
)
DEFINITIONS = {
    "kind": {"enum": ["circle", "square", 3]},
    "tree": {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/tree"}, "value": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["value"],
        "additionalProperties": False,
    },
}


FORMATS = FormatChecker()


@FORMATS.checks("date", ValueError)
def _is_date(value: object) -> bool:
    """As llguidance has it, with years from 0000, each of which counts as a leap year."""
    if isinstance(value, str):
        date.fromisoformat("2000" + value[4:])
    return not isinstance(value, str) or re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value) is not None


def random_schemas(count: int) -> list[Schema]:
    """The same ones every time."""
    made: list[Schema] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.one_of(_objects(INNER), INNER))
    def collect(schema: Schema) -> None:
        made.append({**schema, "$defs": DEFINITIONS})

    collect()
    return made


@dataclass(slots=True)
class Tally:
    """What came of it."""

    finished: int = 0
    cut: int = 0  # by `max_tokens`
    kinds: Counter[str] = field(default_factory=Counter)  # of the values that were finished
    faults: list[str] = field(default_factory=list)  # everything else, in words

    def take(self, schema: Schema, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            self.faults.append(f"{json.dumps(schema)}: {answer.text}")
            return
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] == "length":
            self.cut += 1
            return
        self.finished += 1
        try:
            value = json.loads(choice["text"])
            Draft202012Validator(schema, format_checker=FORMATS).validate(value)
        except (ValueError, ValidationError) as error:
            self.faults.append(f"{json.dumps(schema)}: {choice['text']!r}: {error}")
        else:
            self.kinds[type(value).__name__] += 1


async def ask(url: str, schemas: list[Schema], side_by_side: int, **fields: Any) -> Tally:
    """Asks for an answer to each, so many at a time; every other one is drawn, the rest is the likeliest."""
    tally, turns = Tally(), asyncio.Semaphore(side_by_side)

    async def ask_one(client: httpx.AsyncClient, place: int, schema: Schema) -> None:
        body = {"temperature": place % 2, "seed": place, "structured_outputs": {"json": schema}, **fields}
        async with turns:
            tally.take(schema, await client.post("/v1/completions", json=body))

    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        await asyncio.gather(*(ask_one(client, place, schema) for place, schema in enumerate(schemas)))
    return tally
