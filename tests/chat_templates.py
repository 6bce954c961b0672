"""Chat templates as small as can be, one for each way in which models are told of tools and call them."""

_OPEN = "{% if add_generation_prompt %}[assistant]{% endif %}"
_PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" + _OPEN
_TURNS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}{% endfor %}"
)
_TOLD = "{% if tools %}{{ tools | tojson }}{% endif %}"


def _template(call: str) -> str:
    return _TOLD + _TURNS.replace("CALL", call) + _OPEN


HERMES = _template(
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
)
HERMES_OF_TEXT = _template(
    '<tool_call>\n{{ \'{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{ c.function.arguments + '}' }}\n</tool_call>"
)
LLAMA = _template('{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}')
MISTRAL = _template(
    "{% if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
    '[TOOL_CALLS][{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}]'
)
MISTRAL_ARGS = _template("[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}")
PYTHONIC = _template(
    "[{{ c.function.name }}({% for k, v in c.function.arguments | items %}{{ k }}={{ v | tojson }}{% endfor %})]"
)
UNREADABLE = _template("<function={{ c.function.name }}>{{ c.function.arguments | tojson }}</function>")
PLAIN = _PLAIN
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + _PLAIN
REASONING = (
    _TOLD
    + "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    + "{% endif %}{{ m.content }}{% endfor %}"
    + "{% if add_generation_prompt %}[assistant]{% if enable_thinking is false %}<think>\n\n</think>\n\n"
    + "{% elif enable_thinking %}<think>\n{% endif %}{% endif %}"
)
