"""Does the grammar take every call that is right, in every syntax, and nothing that is wrong?"""

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from server.text.call_grammar import Calling, call_grammar
from server.text.call_syntax import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, PYTHONIC, CallSyntax
from server.text.conversation import Tool
from server.text.reasoning import FORMATS, ReasoningFormat

BYTES = LLTokenizer("byte")
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"}},
    "required": ["city"],
}
TOOLS = [Tool(name="weather", schema=WEATHER, declared={}), Tool(name="now", schema={"type": "object"}, declared={})]
WEATHER_CALL = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>',
    "llama": '{"name": "weather", "parameters": {"city": "Rome", "days": 3}}',
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome", "days": 3}}]',
    "mistral_args": '[TOOL_CALLS]weather[ARGS]{"city": "Rome", "days": 3}',
    "pythonic": '[weather(city="Rome", exact=True)]',
}
TWO_CALLS = {
    "hermes": WEATHER_CALL["hermes"] + '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "mistral": WEATHER_CALL["mistral"][:-1] + ', {"name": "now", "arguments": {}}]',
    "mistral_args": WEATHER_CALL["mistral_args"] + "[TOOL_CALLS]now[ARGS]{}",
    "pythonic": '[weather(city="Rome", exact=True), now()]',
}
WRONG = {
    "hermes": [
        '{"name": "other"',
        '{"name": "weather", "arguments": {"city": 5',
        '{"name": "weather", "arguments": {}',
    ],
    "llama": ['{"name": "other"', '{"name": "weather", "parameters": {"city": 5', '{"city"'],
    "mistral": ['{"name": "other"', '{"name": "weather", "arguments": {"sea": '],
    "mistral_args": ["other", 'weather[ARGS]{"city": 5'],
    "pythonic": ["other", "weather()", "weather(city=5", "weather(days=3, city", 'weather(city="a", exact=true'],
}
OPENING = {"hermes": "<tool_call>\n", "mistral": "[TOOL_CALLS][", "mistral_args": "[TOOL_CALLS]", "pythonic": "["}
SYNTAXES = [HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, PYTHONIC]


def takes(
    text: str,
    syntax: CallSyntax,
    *,
    required: bool = False,
    single: bool = False,
    reasoning: ReasoningFormat | None = None,
    is_open: bool = False,
) -> bool:
    calling = Calling(syntax, TOOLS, required, single)
    lark, schemas = call_grammar(calling, {}, reasoning, reasoning_is_open=is_open)
    parts = [{"lark_grammar": lark}, *({"name": name, "json_schema": schema} for name, schema in schemas.items())]
    matcher = LLMatcher(BYTES, json.dumps({"grammars": parts}), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.kind)
@pytest.mark.parametrize("single", [False, True])
def test_calls_that_follow_the_schema_are_taken_and_others_are_not(syntax: CallSyntax, single: bool) -> None:
    for required in (True, False):
        assert takes(WEATHER_CALL[syntax.kind], syntax, required=required, single=single)
        assert takes("No call.\n", syntax, required=required, single=single) is not required
        for wrong in WRONG[syntax.kind]:
            assert not takes(OPENING.get(syntax.kind, "") + wrong, syntax, required=required, single=single)
        if syntax.kind in TWO_CALLS:
            assert takes(TWO_CALLS[syntax.kind], syntax, required=required, single=single) is not single


@pytest.mark.parametrize("syntax", [HERMES, MISTRAL, MISTRAL_ARGS], ids=lambda syntax: syntax.kind)
def test_text_may_come_before_a_call_that_is_not_required(syntax: CallSyntax) -> None:
    text = "Let me see. " + WEATHER_CALL[syntax.kind]
    assert takes(text, syntax)
    assert not takes(text, syntax, required=True)


def test_an_answer_that_has_to_call_has_an_end() -> None:
    assert takes("\n".join([WEATHER_CALL["hermes"]] * 8), HERMES, required=True)
    assert not takes("\n".join([WEATHER_CALL["hermes"]] * 9), HERMES, required=True)


def test_reasoning_comes_before_calls() -> None:
    form, call = FORMATS[0], WEATHER_CALL["hermes"]
    for required in (True, False):
        assert takes(
            f"hm <tool_call> or not\n</think>\n\n{call}", HERMES, required=required, reasoning=form, is_open=True
        )
        assert takes(f"<think>\nhm\n</think>\n\n{call}", HERMES, required=required, reasoning=form)
        assert takes(call, HERMES, required=required, reasoning=form)
    assert not takes("<think>hm</think>no", HERMES, required=True, reasoning=form)


def test_pythonic_calls_have_keywords_that_python_can_read() -> None:
    anything = {"type": "object", "properties": {"a-b": {}, "from": {}, "never": False, "any": True}}
    calling = Calling(PYTHONIC, [Tool(name="f", schema=anything, declared={})], is_required=True, is_single=True)
    lark, schemas = call_grammar(calling, {}, None, reasoning_is_open=False)
    assert len(schemas) == 1
    assert '"any="' in lark
    required = Tool(name="f", schema={**anything, "required": ["from"]}, declared={})
    with pytest.raises(ValueError, match="'from' of 'f'"):
        call_grammar(Calling(PYTHONIC, [required], True, True), {}, None, reasoning_is_open=False)


def test_marks_that_are_special_tokens_are_no_text() -> None:
    calling = Calling(HERMES, TOOLS, is_required=False, is_single=False)
    lark, _ = call_grammar(calling, {"<tool_call>": 7, "</tool_call>": 8}, None, reasoning_is_open=False)
    assert "lead: TEXT <[7]>" in lark
    assert "<[8]>" in lark
    assert '"<tool_call>"' not in lark
