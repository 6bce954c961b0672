"""How tools are explained to a model whose chat template does not know them: as text, the way Hermes has it."""

import json

from server.text.conversation import Tool, Turn

_EXPLANATION = """\
# Tools

You can call the functions described here, one JSON object a line:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as a JSON object, like this:
<tool_call>
{{"name": "function_name", "arguments": {{"argument": "value"}}}}
</tool_call>

What it gives back follows between <tool_response> and </tool_response>."""


def with_tools_as_text(turns: list[Turn], tools: list[Tool], *, takes_system: bool) -> list[Turn]:
    """The same conversation in turns of the system, the user and the assistant, all of them text."""
    written: list[Turn] = []
    for turn in turns:
        if turn["role"] == "tool" and written and written[-1]["role"] == "tool":
            written[-1] = {"role": "tool", "content": f"{written[-1]['content']}\n{_result(turn)}"}
        elif turn["role"] == "tool":
            written.append({"role": "tool", "content": _result(turn)})
        else:
            written.append(_with_calls(turn))
    written = [turn | {"role": "user"} if turn["role"] == "tool" else turn for turn in written]
    return _with_explanation(written, tools, takes_system) if tools else written


def _result(turn: Turn) -> str:
    return f"<tool_response>\n{turn['content']}\n</tool_response>"


def _with_calls(turn: Turn) -> Turn:
    calls = [_call(call["function"]) for call in turn.get("tool_calls", [])]
    content = "\n".join([turn["content"], *calls] if turn["content"] else calls)
    return {key: value for key, value in turn.items() if key != "tool_calls"} | {"content": content}


def _call(function: dict[str, object]) -> str:
    call = json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def _with_explanation(turns: list[Turn], tools: list[Tool], takes_system: bool) -> list[Turn]:
    """In the first turn, or in one of the system before it where that can be."""
    descriptions = "\n".join(json.dumps(tool.declared, ensure_ascii=False) for tool in tools)
    explanation = _EXPLANATION.format(tools=descriptions)
    first, role = turns[0], "system" if takes_system else "user"
    if first["role"] != role:
        return [{"role": role, "content": explanation}, *turns]
    before, after = (first["content"], explanation) if role == "system" else (explanation, first["content"])
    return [first | {"content": f"{before}\n\n{after}"}, *turns[1:]]
