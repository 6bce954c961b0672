"""How the first thing wrong with a body is told: pydantic's findings in OpenAI's words and codes."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from server.errors import BadRequest, UnsupportedParameter, shown

MAX_FINDINGS = 64  # beyond, listing what pydantic found costs more than the request is worth
LONGEST_INTEGER = 4300  # digits; the JSON parser gives up beyond

# Labels of a union's branches: they appear in pydantic's paths and are no part of the client's.
STRING, STRINGS, NUMBERS, LISTS = "~string", "~strings", "~numbers", "~lists"
FLAG, OBJECT, OTHER = "~flag", "~object", "~other"
_ITEMS = ("message", "function_call", "function_call_output", "reasoning", "function")
_BLOCKS = ("text", "tool_use", "tool_result", "thinking", "custom")
BRANCHES = frozenset({STRING, STRINGS, NUMBERS, LISTS, FLAG, OBJECT, OTHER, *(f"~{kind}" for kind in _ITEMS + _BLOCKS)})
# Their keys are the client's own: paths stop there.
MAPS = frozenset({"chat_template_kwargs", "logit_bias", "metadata", "parameters", "prediction"})

EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "string_type": "a string",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
}


def custom(code: str, message: str) -> PydanticCustomError:
    """What a validator raises to be told to the client as `message` under `code`, with the field's own path."""
    return PydanticCustomError(code, "{message}", {"message": message})


def refusal(error: ValidationError, raw: bytes) -> BadRequest:
    """The one finding worth telling: the first, and within a union the branch that got furthest."""
    if error.error_count() > MAX_FINDINGS:
        return BadRequest(f"The request body has {error.error_count()} invalid fields.", code="invalid_value")
    findings = error.errors(include_url=False)
    first = findings[0]
    if first["type"] == "json_invalid":
        return _not_json(first["ctx"]["error"], raw)
    if isinstance(first["input"], float) and first["input"] != first["input"]:
        return _not_json("NaN is no JSON", raw)
    rivals = [finding for finding in findings if _top(finding) == _top(first)]
    best = max(rivals, key=_progress)
    if best["type"] in EXPECTED:
        expected = [EXPECTED[r["type"]] for r in rivals if r["type"] in EXPECTED and _progress(r) == _progress(best)]
        return _wrong_type(_path(best), expected, best["input"])
    return _tell(best)


def _top(finding: ErrorDetails) -> tuple[int | str, ...]:
    """The path up to the first union: findings that share it are branches of the same value."""
    location = finding["loc"]
    branch = next((i for i, part in enumerate(location) if part in BRANCHES), len(location))
    return location[:branch]


def _progress(finding: ErrorDetails) -> tuple[bool, list[int], int]:
    """How far a branch got: a wrong value is further than a wrong type, then a later element, then a deeper one."""
    location = finding["loc"]
    return finding["type"] not in EXPECTED, [part for part in location if isinstance(part, int)], len(location)


def _path(finding: ErrorDetails) -> str | None:
    path = ""
    for part in finding["loc"]:
        if part in BRANCHES:
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
        if part in MAPS:
            break
    return shown(path.removeprefix(".")) or None


def _not_json(reason: str, raw: bytes) -> BadRequest:
    if reason.startswith("number out of range"):
        field = re.search(rb'"(\w{1,64})"\s*:\s*-?\d{%d}' % LONGEST_INTEGER, raw)
        param = field[1].decode(errors="replace") if field else None
        message = f"Invalid '{param}': integer above maximum value. It has more than {LONGEST_INTEGER} digits."
        return BadRequest(message, param=param, code="integer_above_max_value")
    return BadRequest(f"We could not parse the JSON body of your request. ({reason})")


def _wrong_type(path: str | None, expected: Sequence[str], value: object) -> BadRequest:
    alternatives = " or ".join(dict.fromkeys(expected))
    subject = f"Invalid type for '{path}'" if path else "Invalid type for the request body"
    message = f"{subject}: expected {alternatives}, but got {_kind(value)} instead."
    return BadRequest(message, param=path, code="invalid_type")


def _kind(value: object) -> str:
    kinds: list[tuple[type, str]] = [
        (bool, "a boolean"),  # before int, which it is in Python
        (int, "an integer"),
        (float, "a decimal number"),
        (str, "a string"),
        (list, "an array"),
        (dict, "an object"),
    ]
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def _tell(finding: ErrorDetails) -> BadRequest:
    path, context = _path(finding), finding.get("ctx", {})
    teller = TELLERS.get(finding["type"])
    if teller is not None:
        code, message = teller(path or "", context, finding["input"])
        return BadRequest(message, param=path, code=code)
    if "message" not in context:  # a kind without words of its own: a refusal all the same
        return BadRequest(f"Invalid value for '{path or 'the request body'}'.", param=path, code="invalid_value")
    kind = UnsupportedParameter if finding["type"] == "unsupported_parameter" else BadRequest
    return kind(context["message"], param=path, code=finding["type"])


Teller = Callable[[str, dict[str, Any], Any], tuple[str, str]]  # path, context, input -> code, message


def _bound(side: str, sign: str, key: str) -> Teller:
    def tell(path: str, context: dict[str, Any], value: Any) -> tuple[str, str]:
        limit = context[key]
        kind = "integer" if isinstance(limit, int) else "decimal"
        adjective = "above maximum" if side == "above_max" else "below minimum"
        bound = f"{limit}" if isinstance(limit, int) else f"{limit:g}"
        message = f"Invalid '{path}': {kind} {adjective} value. Expected a value {sign} {bound}, but got "
        return f"{kind}_{side}_value", f"{message}{shown(str(value))} instead."

    return tell


def _too_long(path: str, context: dict[str, Any], value: Any) -> tuple[str, str]:
    kind = "array" if isinstance(value, list) else "object"
    message = f"Invalid '{path}': {kind} too long. Expected an {kind} with maximum length {context['max_length']}"
    return f"{kind}_above_max_length", f"{message}, but got an {kind} with length {len(value)} instead."


def _too_short(path: str, context: dict[str, Any], value: Any) -> tuple[str, str]:
    message = f"Invalid '{path}': empty array. Expected an array with minimum length {context['min_length']}"
    return "empty_array", f"{message}, but got an empty array instead."


def _string_too_long(path: str, context: dict[str, Any], value: Any) -> tuple[str, str]:
    message = f"Invalid '{path}': string too long. Expected a string with maximum length {context['max_length']}"
    return "string_above_max_length", f"{message}, but got a string with length {len(value)} instead."


TELLERS: dict[str, Teller] = {
    "missing": lambda path, context, value: (
        "missing_required_parameter",
        f"Missing required parameter: '{path}'.",
    ),
    "not_honoured": lambda path, context, value: (
        "unsupported_parameter",
        f"Unsupported parameter: '{path}': this server does not honour it; leave it out.",
    ),
    "extra_forbidden": lambda path, context, value: ("unknown_parameter", f"Unknown parameter: '{path}'."),
    "literal_error": lambda path, context, value: (
        "invalid_value",
        f"Invalid value for '{path}': {shown(str(value))}. Supported values are: {context['expected']}.",
    ),
    "finite_number": lambda path, context, value: (
        "invalid_value",
        f"Invalid value for '{path}': expected a finite number.",
    ),
    "string_too_short": lambda path, context, value: (
        "invalid_value",
        f"Invalid '{path}': empty string. Expected at least one character.",
    ),
    "greater_than_equal": _bound("below_min", ">=", "ge"),
    "greater_than": _bound("below_min", ">", "gt"),
    "less_than_equal": _bound("above_max", "<=", "le"),
    "too_long": _too_long,
    "too_short": _too_short,
    "string_too_long": _string_too_long,
}
