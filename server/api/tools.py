"""What tools a request may declare, which of them it may ask to be called, and how calls are sent back."""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, Field, JsonValue, Tag
from pydantic_core import from_json

from server.api.refusals import OBJECT, STRING, custom
from server.api.schemas import Strict
from server.errors import BadRequest, shown
from server.grammar.grammars import MAX_DEPTH, is_deeper
from server.text.conversation import Tool

MAX_TOOLS = 128


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
        raise custom("invalid_value", f"Invalid name '{shown(name)}': expected 1 to 64 of a-z, A-Z, 0-9, '_' and '-'.")
    return name


ToolName = Annotated[str, AfterValidator(_check_name)]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


class Function(Strict):
    name: ToolName
    description: str | None = None
    """What it does, for the model to read."""
    parameters: dict[str, JsonValue] | None = None
    """A JSON schema of its arguments, an object; without it there are none. Every call follows it."""
    strict: bool | None = Field(default=None, json_schema_extra={"default": False})
    """Refuse a schema that cannot be followed to the letter, instead of following what can be."""


class FunctionTool(Strict):
    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    name: ToolName


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionName


Tools = Annotated[list[FunctionTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Annotated[Literal["none", "auto", "required"], Tag(STRING)] | Annotated[NamedTool, Tag(OBJECT)]


class CalledFunction(Strict):
    name: ToolName
    arguments: str
    """A JSON object's text."""


class ToolCall(Strict):
    """As an answer had it."""

    no_effect = frozenset({"index"})

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


ToolCalls = Annotated[list[ToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)]


def tools_of(declared: Sequence[FunctionTool] | None) -> list[Tool]:
    """Raises BadRequest where one is declared twice, or its schema describes no object."""
    tools: list[Tool] = []
    for place, tool in enumerate(declared or []):
        function, param = tool.function, f"tools[{place}].function"
        if any(other.name == function.name for other in tools):
            message = f"Invalid '{param}.name': '{function.name}' is declared twice."
            raise BadRequest(message, param=f"{param}.name", code="invalid_value")
        schema = _schema(function.parameters or {}, f"{param}.parameters")
        fields = tool.model_dump(exclude_none=True)
        tools.append(Tool(name=function.name, schema=schema, declared=fields, is_strict=bool(function.strict)))
    return tools


def _schema(parameters: dict[str, Any], param: str) -> dict[str, Any]:
    reason = None
    if parameters.get("type", "object") != "object":
        reason = "'type' has to be 'object'"
    elif not isinstance(parameters.get("properties", {}), dict):
        reason = "'properties' has to be an object"
    elif not _are_names(parameters.get("required", [])):
        reason = "'required' has to be an array of strings"
    elif is_deeper(parameters, MAX_DEPTH):
        reason = f"it is nested more than {MAX_DEPTH} deep"
    elif not _has_usual_numbers(parameters):
        reason = "it holds a number that is beyond 64 bits or not finite"
    if reason is not None:
        raise BadRequest(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")
    return {"type": "object", "properties": {}, **parameters}


def _are_names(required: object) -> bool:
    return isinstance(required, list) and all(isinstance(name, str) for name in required)


def _has_usual_numbers(value: object) -> bool:
    """Whether templates can be given all numbers."""
    try:
        msgspec.msgpack.encode(value)
        json.dumps(value, allow_nan=False)
    except (OverflowError, ValueError):
        return False
    return True


def arguments_of(text: str, param: str) -> dict[str, Any]:
    """Of a call that is sent back; no text at all counts as no arguments."""
    try:
        arguments = from_json(text or "{}", allow_inf_nan=False)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict) or not _has_usual_numbers(arguments):
        message = f"Invalid '{param}': expected the text of a JSON object, its numbers finite and within 64 bits."
        raise BadRequest(message, param=param, code="invalid_value")
    return arguments
