"""How a model is told of tools and how it calls them, found out by letting its chat template render a call."""

import json
import re
from dataclasses import dataclass
from typing import Any

from server.text.call_syntax import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, PYTHONIC, CallSyntax
from server.text.chat_template import ChatTemplate
from server.text.conversation import Turn
from server.text.renderer import Render

_NAME, _ID = "sample_tool", "sample123"
_ARGUMENTS = {"sample_key": "sample value"}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A sample.",
        "parameters": {"type": "object", "properties": {"sample_key": {"type": "string"}}},
    },
}
_QUESTION: Turn = {"role": "user", "content": "Hi"}
_SYSTEM: Turn = {"role": "system", "content": "sample system"}


@dataclass(frozen=True, slots=True)
class ToolFormat:
    syntax: CallSyntax
    is_native: bool = True  # the template renders tools, calls and results; else they are written as text
    has_text_arguments: bool = False  # the template takes a call's arguments as JSON text, not as an object
    takes_system: bool = True  # the template renders a turn of the system


def tool_format(template: ChatTemplate) -> ToolFormat:
    """The template's own, if it is one that we can read; else Hermes's, in turns that any template renders."""
    if _tells_of_tools(template):
        for arguments in (_ARGUMENTS, json.dumps(_ARGUMENTS)):
            syntax = _syntax_in(_sample(template, [_QUESTION, _call(arguments)], [_TOOL]) or "")
            if syntax is not None:
                return ToolFormat(syntax, has_text_arguments=isinstance(arguments, str))
    takes_system = _SYSTEM["content"] in (_sample(template, [_SYSTEM, _QUESTION]) or "")
    return ToolFormat(HERMES, is_native=False, takes_system=takes_system)


def _tells_of_tools(template: ChatTemplate) -> bool:
    return _NAME in (_sample(template, [_QUESTION], [_TOOL]) or "")


def _sample(template: ChatTemplate, turns: list[Turn], tools: list[dict[str, Any]] | None = None) -> str | None:
    return template.sample(Render(turns, add_generation_prompt=False, tools=tools))


def _call(arguments: object) -> Turn:
    call = {"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _syntax_in(rendered: str) -> CallSyntax | None:
    """Which syntax the sample call is written in."""
    for syntax in (MISTRAL_ARGS, MISTRAL, HERMES, LLAMA, PYTHONIC):
        calls = re.finditer(re.escape(syntax.opening) + syntax.head.pattern, rendered)
        if any(call["name"] == _NAME and syntax.first in call[0] for call in calls):
            return syntax
    return None
