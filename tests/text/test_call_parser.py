"""Are calls of tools found in every syntax, however the text is cut, without losing any of it, in linear time?"""

import json
import random
import time

import pytest

from server.text.answer_parser import AnswerParser
from server.text.call_parser import CallParser, new_call_id, new_short_call_id
from server.text.call_syntax import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, PYTHONIC, CallSyntax
from server.text.parts import CallArguments, CallBegin, Part, Text, join
from server.text.reasoning import FORMATS, ReasoningParser

NAMES = ["weather", "now"]
SYNTAXES = [HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, PYTHONIC]


def read(syntax: CallSyntax, text: str, step: int) -> tuple[list[Part], bool]:
    parser = CallParser(syntax, NAMES, lambda: "id")
    parts = [part for start in range(0, len(text), step) for part in parser.feed(text[start : start + step])]
    return join(parts + parser.end()), parser.has_called


def called(place: int, name: str, arguments: str) -> list[Part]:
    return [CallBegin(place, "id", name), CallArguments(place, arguments)]


ROME = '{"city": "Rome", "note": "a \\"}] quoted\\\\"}'
ONE_CALL = {
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>',
    "llama": f'{{"name": "weather", "parameters": {ROME}}}',
    "mistral": f'[TOOL_CALLS][{{"name": "weather", "arguments": {ROME}}}]',
    "mistral_args": f"[TOOL_CALLS]weather[ARGS]{ROME}",
    "pythonic": '[weather(city="Rome", note=\'a "}] quoted\\\\\')]',
}
FOUND = [(syntax, ONE_CALL[syntax.kind], called(0, "weather", ROME)) for syntax in SYNTAXES] + [
    (
        HERMES,
        'Let me see.\n<tool_call>{"name":"now","arguments":{}}</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"a": [1, {}]}}\n</tool_call>\n',
        [Text("Let me see."), *called(0, "now", "{}"), *called(1, "weather", '{"a": [1, {}]}')],
    ),
    (
        MISTRAL,
        'So: [TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "abcdefghi"}, {"name": "weather", "arguments": {}}]',
        [Text("So:"), *called(0, "now", "{}"), *called(1, "weather", "{}")],
    ),
    (
        MISTRAL_ARGS,
        "[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]weather[ARGS]{}",
        [*called(0, "now", "{}"), *called(1, "weather", "{}")],
    ),
    (
        PYTHONIC,
        " [now(), weather(days=-3, exact=True, more={'x': [null, None, false]}, text='(\\'')]",
        [
            *called(0, "now", "{}"),
            *called(
                1,
                "weather",
                '{"days": -3, "exact": true, "more": {"x": [null, null, false]}, "text": "(\'"}',
            ),
        ],
    ),
]


@pytest.mark.parametrize(("syntax", "text", "parts"), FOUND, ids=lambda value: getattr(value, "kind", ""))
def test_calls_are_found_however_the_text_is_cut(syntax: CallSyntax, text: str, parts: list[Part]) -> None:
    for step in (1, 2, 3, 5, 17, len(text)):
        assert read(syntax, text, step) == (parts, True)


NO_CALLS = [
    "no call at all\n",
    "",
    " \n ",
    "<tool_call>",
    "a <tool_call> b",
    "x <tool_call>\n{}\n</tool_call> y",
    "<tool_call><tool_call>",
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    '<tool_call>{"arguments": {}, "name": "now"}</tool_call>',
    '{"name": "unknown", "parameters": {}}',
    '{"city": "Rome"}',
    "{",
    "[TOOL_CALLS]",
    "[TOOL_CALLS]unknown[ARGS]{}",
    "[1, 2, 3]",
    "[now(x)]",
    "[now(**{})]",
    "[now(a=b)] and more",
    "[now(a=1e999)]",
    "[now(a={1})]",
    "[unknown()]",
    "[now(a='",
    "{" * 1000,
    "[" * 1000,
    "<tool_call>" + " " * 1000 + "{",
    "[now(" + "(" * 1000 + ")" * 1001 + "]",
]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.kind)
@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_stays_text(syntax: CallSyntax, text: str) -> None:
    for step in (1, 7, max(len(text), 1)):
        parts, has_called = read(syntax, text, step)
        assert parts == ([Text(text)] if text else [])
        assert not has_called


def test_arguments_are_told_as_they_come() -> None:
    parser = CallParser(HERMES, NAMES, lambda: "id")
    assert parser.feed('<tool_call>\n{"name": "now", "argu') == []
    assert parser.feed('ments": {"a": "b') == [CallBegin(0, "id", "now"), CallArguments(0, '{"a": "b')]
    assert not parser.has_called  # not as long as its arguments go on
    assert parser.feed("c") == [CallArguments(0, "c")]
    assert parser.feed('"}}\n') == [CallArguments(0, '"}')]
    assert parser.end() == []
    assert parser.has_called


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.kind)
def test_a_call_that_is_cut_short_is_told_as_far_as_it_goes_or_is_text(syntax: CallSyntax) -> None:
    text = ONE_CALL[syntax.kind]
    for end in range(len(text)):
        parts, has_called = read(syntax, text[:end], 3)
        arguments = "".join(part.text for part in parts if isinstance(part, CallArguments))
        if parts and isinstance(parts[0], CallBegin):
            assert ROME.startswith(arguments)
            assert has_called == (arguments == ROME)
        else:
            assert parts == ([Text(text[:end])] if end else [])


def test_random_texts_of_marks_lose_nothing_and_do_not_depend_on_the_cuts() -> None:
    pieces = ["<tool_call>", "</tool_call>", '{"name": "now", ', '"arguments": {', "}", "}", "]", "[", '"', "\\", " x "]
    pieces += ["[TOOL_CALLS]", "[ARGS]", "now", "now(", ")", ", ", '{"name": "now", "parameters": {', "\n"]
    chance = random.Random(0)
    for _ in range(300):
        text = "".join(chance.choices(pieces, k=12))
        for syntax in SYNTAXES:
            whole = read(syntax, text, len(text))
            assert read(syntax, text, 1) == read(syntax, text, 4) == whole
            if not any(isinstance(part, CallBegin) for part in whole[0]):
                assert whole[0] == [Text(text)]


HOSTILE = [
    (HERMES, "<tool_call>", 1_000_000),
    (HERMES, "<tool_cal", 100_000),
    (MISTRAL, '[TOOL_CALLS][{"name": ', 100_000),
    (LLAMA, '{"name": "now", "parameters": {"a": "\\\\', 100_000),
    (PYTHONIC, "[now(),", 100_000),
]


@pytest.mark.parametrize(("syntax", "unit", "size"), HOSTILE, ids=lambda value: getattr(value, "kind", value))
def test_hostile_text_character_by_character_takes_linear_time(syntax: CallSyntax, unit: str, size: int) -> None:
    """By processor time, over that of a tenth: it would be a hundredfold if each character looked back at all."""

    def spent(length: int) -> float:
        text = (unit * (length // len(unit) + 1))[:length]
        parser = AnswerParser(ReasoningParser(FORMATS[0], is_open=False), CallParser(syntax, NAMES, lambda: "id"))
        start = time.process_time()
        for character in text:
            parser.feed(character)
        parser.end()
        return time.process_time() - start

    assert spent(size) < 40 * spent(size // 10)


@pytest.mark.parametrize("text", [" " * 2**18, "<tool_call>" * 2**15, f"{ONE_CALL['hermes'][:60]}{'{' * 2**18}"])
def test_hostile_text_at_once_is_read_without_a_loss(text: str) -> None:
    parser = CallParser(HERMES, NAMES, lambda: "id")
    start = time.process_time()
    parts = parser.feed(text) + parser.end()
    assert time.process_time() - start < 5
    assert sum(len(part.text) for part in parts if isinstance(part, Text | CallArguments)) >= len(text) - 50


def test_ids_are_new_every_time() -> None:
    assert len({new_call_id() for _ in range(100)}) == 100
    assert all(len(new_short_call_id()) == 9 and new_short_call_id().isalnum() for _ in range(100))


def test_pythonic_arguments_are_json() -> None:
    parts, _ = read(PYTHONIC, "[now(a='\\n\"é', b=(1, 2), c=1.5)]", 1)
    assert json.loads(parts[1].text) == {"a": '\n"é', "b": [1, 2], "c": 1.5}
