"""What an answer may be where tools can be called, as a grammar: free text, and calls that are right by construction.

The grammar is Lark as llguidance extends it: `<[5]>` is the special token 5, `@name` a JSON schema handed along, a
`lazy` rule ends as early as it can. Calls are written as chat templates write them.
"""

import json
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import shown
from server.text.call_syntax import CallSyntax
from server.text.conversation import Tool
from server.text.reasoning import ReasoningFormat

MAX_CALLS = 8  # of one answer that has to call; a small model would not stop

# As `json.dumps` lays out, which templates show the models. Blanks of its own choice would keep a small one busy.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_EMPTY = '""'

Schemas = dict[str, dict[str, Any]]  # by the name that the grammar has for them


@dataclass(frozen=True, slots=True)
class Calling:
    """Which calls an answer may or must consist of."""

    syntax: CallSyntax
    tools: Sequence[Tool]  # those that may be called
    is_required: bool
    is_single: bool  # no more than one call


def call_grammar(
    calling: Calling, special: Mapping[str, int], reasoning: ReasoningFormat | None, *, reasoning_is_open: bool
) -> tuple[str, Schemas]:
    """The grammar and the schemas it refers to. `special` has the ids of special tokens, which are no text.

    Raises ValueError in one line where the syntax has no way to write a call.
    """
    writer = _Writer(calling, special)
    start = writer.reasoning(reasoning, reasoning_is_open) + writer.answer()
    return "\n".join([f"start: {start}", *writer.rules]) + "\n", writer.schemas


class _Writer:
    """Collects rules while it writes them."""

    def __init__(self, calling: Calling, special: Mapping[str, int]) -> None:
        self._calling, self._special = calling, special
        self.rules = [r"TEXT: /(?s:.*)/", r"SPACE: /\s{0,4}/"]
        self.schemas: Schemas = {}

    def reasoning(self, form: ReasoningFormat | None, is_open: bool) -> str:
        """What comes before the answer. Reasoning that begins with a mark made of text is a part of the free text,
        unless a call has to follow it.
        """
        if form is None:
            return ""
        if is_open:
            return f"{self._until('reasoning', form.closing)} SPACE "
        if form.opening in self._special or self._calling.is_required:
            return f"({self._mark(form.opening)} {self._until('reasoning', form.closing)} SPACE)? "
        return ""

    def answer(self) -> str:
        syntax, calling = self._calling.syntax, self._calling
        self.rules.append("call: " + " | ".join(self._call(place, tool) for place, tool in enumerate(calling.tools)))
        group = self._group()
        if calling.is_required:
            return f"{self._mark(syntax.opening)} {group} {self._further_groups()}" if syntax.opening else group
        if not syntax.opening:
            self.rules.append(rf"WORDS: /(?s:\s*([^\s{re.escape(syntax.first)}].*)?)/")
            return f"({group} | WORDS)"
        lead = self._until("lead", syntax.opening)
        if calling.is_single or syntax.kind == "mistral":
            return f"({lead} {group} SPACE | TEXT)"
        return f"({lead} {group})* TEXT"

    def _group(self) -> str:
        """The calls that one opening is good for. Llama's templates take no more than one a turn."""
        if self._calling.syntax.kind not in ("mistral", "pythonic"):
            return "call"
        more = "" if self._calling.is_single else f'(", " call){{0,{MAX_CALLS - 1}}} '
        return f'"[" call {more}"]"'

    def _further_groups(self) -> str:
        syntax = self._calling.syntax
        if self._calling.is_single or syntax.kind == "mistral":
            return ""
        between = _quoted("\n") if syntax.kind == "hermes" else ""
        return f"({between} {self._mark(syntax.opening)} call){{0,{MAX_CALLS - 1}}}"

    def _call(self, place: int, tool: Tool) -> str:
        syntax, name = self._calling.syntax, json.dumps(tool.name)
        match syntax.kind:
            case "hermes":
                parts = [_quoted(f'\n{{"name": {name}, "arguments": '), self._arguments(place, tool), _quoted("}\n")]
                return " ".join([*parts, self._mark(syntax.closing)])
            case "llama":
                return " ".join([_quoted(f'{{"name": {name}, "parameters": '), self._arguments(place, tool), '"}"'])
            case "mistral":
                return " ".join([_quoted(f'{{"name": {name}, "arguments": '), self._arguments(place, tool), '"}"'])
            case "mistral_args":
                return " ".join([_quoted(tool.name), self._mark("[ARGS]"), self._arguments(place, tool)])
            case "pythonic":
                return " ".join([_quoted(f"{tool.name}("), self._keywords(place, tool), '")"'])

    def _arguments(self, place: int, tool: Tool) -> str:
        """An object; where its schema does not say so, it has no properties but those declared."""
        return self._json(f"arguments_{place}", {"additionalProperties": False, **tool.schema}, tool)

    def _keywords(self, place: int, tool: Tool) -> str:
        """Python's keywords in the order in which they are declared, those that are not required or not."""
        required = tool.schema.get("required", [])
        declared: dict[str, Any] = tool.schema.get("properties", {}) | {
            name: {} for name in required if name not in tool.schema.get("properties", {})
        }
        names = [name for name in declared if declared[name] is not False and _is_keyword(name)]
        if impossible := next((name for name in required if name not in names), None):
            raise ValueError(f"'{shown(impossible)}' of '{tool.name}' cannot be an argument in this model's calls")
        shared: dict[str, Any] = {key: tool.schema[key] for key in ("$defs", "definitions") if key in tool.schema}
        first, later = "", ""  # what may follow before any keyword, and after one
        for number, name in reversed(list(enumerate(names))):
            rule, schema = f"{place}_{number}", declared[name] if isinstance(declared[name], dict) else {}
            value = self._value(f"value_{rule}", {**shared, **schema}, tool)
            self.rules.append(f"keyword_{rule}: {_quoted(name + '=')} {value} {later}")
            without = [f" | {rest or _EMPTY}" if name not in required else "" for rest in (first, later)]
            self.rules.append(f"first_{rule}: keyword_{rule}{without[0]}")
            self.rules.append(f'later_{rule}: ", " keyword_{rule}{without[1]}')
            first, later = f"first_{rule}", f"later_{rule}"
        return first

    def _value(self, rule: str, schema: dict[str, Any], tool: Tool) -> str:
        if schema.get("type") == "boolean":
            return '("True" | "False")'
        return self._json(rule, schema, tool)

    def _json(self, rule: str, schema: dict[str, Any], tool: Tool) -> str:
        self.schemas[rule] = {**schema, "x-guidance": _LAYOUT | {"lenient": not tool.is_strict}}
        return f"@{rule}"

    def _until(self, rule: str, mark: str) -> str:
        """A text up to a mark, and the mark."""
        if mark in self._special:
            self.rules.append(f"{rule}: TEXT {self._mark(mark)}")
        else:
            self.rules.append(rf"{rule}[lazy]: /(?s:.*){_pattern(mark)}/")
        return rule

    def _mark(self, mark: str) -> str:
        return f"<[{self._special[mark]}]>" if mark in self._special else _quoted(mark)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _pattern(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


def _is_keyword(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)
