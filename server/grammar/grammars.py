"""What an answer has to follow, as the grammar that llguidance takes; a 400 with the reason where there is none."""

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax
from pydantic import JsonValue

from server.errors import BadRequest, shown
from server.grammar.matching import matcher, vocabulary
from server.text.tokenizer import Tokenizer

MAX_BYTES = 64 << 10  # of a schema, a pattern, a grammar or all choices together
MAX_CALLS_BYTES = 512 << 10  # of the schemas of all tools together
MAX_GBNF_BYTES = 16 << 10  # translating it takes time that grows with the square
MAX_DEPTH = 32  # of a schema's JSON
MAX_RULES = 1000  # of a grammar: a chain of some thousands is followed by recursion, off the end of the stack
TIME_LIMIT_S = 5.0
_CACHED = 256
_THREADS = 2  # a grammar that takes its time must not keep all others waiting

# Between the parts of JSON: nothing, a blank, or line breaks with an indent. Without a bound a model that has nothing
# to say goes on with blanks for ever.
_WHITESPACE = r" |\n{1,2}[ \t]{0,20}"


class Grammars:
    """Compiles in threads of its own and remembers what came of it. Belongs to one event loop."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")
        self._known: OrderedDict[tuple[str, str], str | ValueError] = OrderedDict()

    async def json_object(self) -> str:
        """Any JSON object."""
        return await self._compile("schema", '{"type":"object"}', "")

    async def json_schema(self, schema: dict[str, JsonValue], *, param: str) -> str:
        """What a JSON schema describes. References are followed within the schema; nothing is ever fetched."""
        if is_deeper(schema, MAX_DEPTH):
            raise _refusal(param, f"it is nested more than {MAX_DEPTH} deep")
        try:
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except ValueError:  # 1e999 is read as infinite
            raise _refusal(param, "it holds a number that is not finite") from None
        return await self._compile("schema", text, param)

    async def regex(self, pattern: str, *, param: str) -> str:
        """What a regular expression matches as a whole, in the syntax of Rust's `regex`."""
        return await self._compile("regex", pattern, param)

    async def choice(self, choices: Sequence[str], *, param: str) -> str:
        """One of some texts."""
        alternatives = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in dict.fromkeys(choices))
        return await self._compile("choice", f"start: CHOICE\nCHOICE: {alternatives}", param)

    async def lark(self, text: str, *, param: str) -> str:
        """What a context-free grammar derives: Lark as llguidance has it, or GBNF, which has no rule `start`."""
        is_gbnf = "::=" in text and not is_lark_syntax(text)
        return await self._compile("gbnf" if is_gbnf else "lark", text, param)

    async def calls(self, text: str, schemas: Mapping[str, dict[str, Any]], *, param: str) -> str:
        """What a Lark grammar derives that refers to JSON schemas as `@name`."""
        parts = [{"lark_grammar": text}, *({"name": name, "json_schema": schema} for name, schema in schemas.items())]
        return await self._compile("calls", json.dumps({"grammars": parts}, ensure_ascii=False), param)

    async def _compile(self, kind: str, text: str, param: str) -> str:
        limit = _LIMITS.get(kind, MAX_BYTES)
        if len(text.encode()) > limit:
            raise _refusal(param, f"it has more than {limit} bytes")
        key = (kind, text)
        if key not in self._known:
            self._known[key] = await self._check(kind, text, param)
        self._known.move_to_end(key)
        result = self._known[key]
        if len(self._known) > _CACHED:
            self._known.popitem(last=False)
        if isinstance(result, ValueError):
            raise _refusal(param, str(result))
        return result

    async def _check(self, kind: str, text: str, param: str) -> str | ValueError:
        compiling = asyncio.get_running_loop().run_in_executor(self._threads, self._try, kind, text)
        try:
            return await asyncio.wait_for(compiling, TIME_LIMIT_S)
        except TimeoutError:
            raise _refusal(param, f"compiling it takes more than {TIME_LIMIT_S:g} seconds") from None

    def _try(self, kind: str, text: str) -> str | ValueError:
        try:
            grammar = _FORMS[kind](text)
            self._prove(grammar)
        except ValueError as error:
            return error
        return grammar

    def _prove(self, grammar: str) -> None:
        """Raises ValueError where no answer follows the grammar, or none that can be found within the limits."""
        start = matcher(self._tokens, grammar)
        if not start.is_error():
            start.compute_bitmask()
        if start.is_error():
            raise ValueError(_reason(start.get_error()))

    @cached_property
    def _tokens(self) -> LLTokenizer:
        return vocabulary(self._tokenizer, self._eos_ids)


def _schema(text: str) -> str:
    return LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": _WHITESPACE})


def _lark(text: str) -> str:
    if text.count(":") > MAX_RULES:
        raise ValueError(f"it has more than {MAX_RULES} rules")
    return LLMatcher.grammar_from_lark(text)


def _gbnf(text: str) -> str:
    try:
        translated = gbnf_to_lark(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except Exception as error:  # the translator raises nothing more precise
        raise ValueError(_reason(str(error))) from None
    return _lark(translated)


_FORMS: dict[str, Callable[[str], str]] = {
    "schema": _schema,
    "regex": LLMatcher.grammar_from_regex,
    "choice": LLMatcher.grammar_from_lark,
    "lark": _lark,
    "gbnf": _gbnf,
    "calls": str,  # it is what llguidance takes already
}
_LIMITS = {"gbnf": MAX_GBNF_BYTES, "calls": MAX_CALLS_BYTES}


def _refusal(param: str, reason: str) -> BadRequest:
    return BadRequest(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")


def _reason(error: str) -> str:
    """The line that says it, without the text around the place, which is the client's own."""
    if error.startswith("NoExtensionBias"):  # nothing is possible, not even the end
        return "no text matches it"
    told = re.search(r"^error: (.+)$", error, re.MULTILINE)
    first = re.sub(r"^(at )?\d+\(\d+\): ", "", error.partition("\n")[0])
    return shown(told[1] if told else first)


def is_deeper(value: object, limit: int) -> bool:
    """Whether JSON is nested more than `limit` deep."""
    level = [value]
    for _ in range(limit):
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [value for part in inner for value in part]
    return any(isinstance(part, dict | list) for part in level)
