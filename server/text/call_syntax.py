"""The ways in which models write calls of tools: what stands around a call, and which text is its arguments."""

import ast
import json
import re
import warnings
from dataclasses import dataclass
from typing import Literal

_NAME = r'"name"\s*:\s*"(?P<name>[\w-]{1,64})"'


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How one call stands in a text. The patterns look at no more than `call_parser.WINDOW` characters.

    `head` ends where the arguments begin, and holds the name. Arguments end where their brackets do. `tail` is what
    stands between two calls or ends the last one; after its group `more` another call's head follows.
    """

    kind: Literal["hermes", "llama", "mistral", "mistral_args", "pythonic"]
    opening: str  # marks a call wherever it stands; without, an answer that begins with `first` consists of calls
    head: re.Pattern[str]
    tail: re.Pattern[str]
    closing: str = ""  # the end of `tail`
    first: str = ""
    is_python: bool = False  # arguments are Python's keywords in round brackets, else a JSON object

    @property
    def has_short_ids(self) -> bool:
        """Whether calls are known by nine letters and digits."""
        return self.kind in ("mistral", "mistral_args")

    @property
    def markers(self) -> tuple[str, ...]:
        """What may be special tokens of the vocabulary, and is part of the text all the same."""
        return tuple(filter(None, (self.opening, self.closing, "[ARGS]" if self.kind == "mistral_args" else "")))


HERMES = CallSyntax(
    kind="hermes",
    opening="<tool_call>",
    head=re.compile(r"\s*\{\s*" + _NAME + r'\s*,\s*"arguments"\s*:\s*(?=\{)'),
    tail=re.compile(r"\s*\}\s*</tool_call>"),
    closing="</tool_call>",
)
LLAMA = CallSyntax(
    kind="llama",
    opening="",
    first="{",
    head=re.compile(r"\{\s*" + _NAME + r'\s*,\s*"parameters"\s*:\s*(?=\{)'),
    tail=re.compile(r"\s*\}"),
)
MISTRAL = CallSyntax(
    kind="mistral",
    opening="[TOOL_CALLS]",
    head=re.compile(r"\s*\[?\s*\{\s*" + _NAME + r'\s*,\s*"arguments"\s*:\s*(?=\{)'),
    tail=re.compile(r'\s*(,\s*"id"\s*:\s*"\w{0,64}"\s*)?\}\s*((?P<more>,)|\])'),
)
MISTRAL_ARGS = CallSyntax(  # as Mistral's newer tokenizers have it
    kind="mistral_args",
    opening="[TOOL_CALLS]",
    head=re.compile(r"\s*(?P<name>[\w-]{1,64})\s*(\[CALL_ID\]\s*\w{0,64}\s*)?\[ARGS\]\s*(?=\{)"),
    tail=re.compile(r""),
)
PYTHONIC = CallSyntax(
    kind="pythonic",
    opening="",
    first="[",
    head=re.compile(r"\s*\[?\s*(?P<name>[\w-]{1,64})\("),
    tail=re.compile(r"\s*((?P<more>,)|\])"),
    is_python=True,
)


def json_of_keywords(source: str) -> str | None:
    """Python's `a=1, b='x'` as a JSON object's text; None if it is anything but keywords with literal values.

    Nothing is run. JSON's own names for true, false and null are understood as well.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes
            call = ast.parse(f"f({source}\n)", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            return None
        arguments = {word.arg: ast.literal_eval(_Names().visit(word.value)) for word in call.keywords}
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


class _Names(ast.NodeTransformer):
    _values = {"true": True, "false": False, "null": None}  # noqa: RUF012  read only

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self._values[node.id]) if node.id in self._values else node
