"""Is reasoning taken apart from what is said, however the text is cut?"""

import pytest

from server.text.parts import Part, Reasoning, Text, join
from server.text.reasoning import FORMATS, ReasoningParser, reasoning_format

THINK, BRACKETS = FORMATS


def read(text: str, step: int, *, is_open: bool) -> tuple[list[Part], int | None]:
    parser = ReasoningParser(THINK, is_open=is_open)
    parts = [part for start in range(0, len(text), step) for part in parser.feed(text[start : start + step])]
    return join(parts + parser.end()), parser.length


CASES = [
    (False, "<think>\nhm, so\n</think>\n\nYes.\n", [Reasoning("hm, so"), Text("Yes.\n")], 23),
    (False, "\n <think>a < b</think>c", [Reasoning("a < b"), Text("c")], 22),
    (False, "  No <think>of</think> it", [Text("  No <think>of</think> it")], 0),
    (False, "<thin", [Text("<thin")], 0),
    (False, " \n", [Text(" \n")], 0),
    (False, "", [], 0),
    (False, "<think></think>", [], 15),
    (False, "<think>cut </thi", [Reasoning("cut </thi")], None),
    (True, "hm\n</think>\n\nYes.", [Reasoning("hm"), Text("Yes.")], 11),
    (True, "only </think", [Reasoning("only </think")], None),
    (True, " \n</think>x</think>", [Text("x</think>")], 10),
]


@pytest.mark.parametrize(("is_open", "text", "parts", "length"), CASES)
def test_reasoning_is_told_apart(is_open: bool, text: str, parts: list[Part], length: int | None) -> None:
    for step in (1, 2, 3, 7, max(len(text), 1)):
        assert read(text, step, is_open=is_open) == (parts, length)


def test_reasoning_is_told_as_it_comes() -> None:
    parser = ReasoningParser(THINK, is_open=False)
    assert parser.feed("<think>\nfirst ") == [Reasoning("first")]
    assert parser.feed("then") == [Reasoning(" then")]
    assert join(parser.feed("\n</think>\n\nso")) == [Text("so")]


def test_how_a_model_marks_its_reasoning_is_read_off_its_template_or_its_tokens() -> None:
    assert reasoning_format("{{ content.split('</think>')[-1] }}", []) is THINK
    assert reasoning_format("", ["<think>", "</think>"]) is THINK
    assert reasoning_format("", ["[THINK]", "[/THINK]"]) is BRACKETS
    assert reasoning_format("{{ messages }}", ["<think>"]) is None


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [("<|assistant|><think>\n", True), ("<|assistant|>", False), ("<think>\n\n</think>\n\n", False)],
)
def test_the_template_may_have_begun_the_reasoning(prompt: str, is_open: bool) -> None:
    assert THINK.is_opened_by(prompt) is is_open
