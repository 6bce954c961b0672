"""What a client may ask its answer to follow, and what is refused with the reason, hostile input included."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.engine.messages import ModelCard
from server.errors import BadRequest
from server.grammar import grammars as module
from server.grammar.grammars import MAX_BYTES, MAX_DEPTH, Grammars
from server.grammar.matching import matcher, vocabulary
from server.text.tokenizer import Tokenizer

Build = Callable[[Grammars], Awaitable[str]]
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TREE = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}


@pytest.fixture
def grammars(tokenizer: Tokenizer, card: ModelCard) -> Grammars:
    return Grammars(tokenizer, card.eos_ids)


def schema(schema: dict[str, Any]) -> Build:
    return lambda grammars: grammars.json_schema(schema, param="here")


def regex(pattern: str) -> Build:
    return lambda grammars: grammars.regex(pattern, param="here")


def lark(text: str) -> Build:
    return lambda grammars: grammars.lark(text, param="here")


def choice(*choices: str) -> Build:
    return lambda grammars: grammars.choice(choices, param="here")


def follows(tokenizer: Tokenizer, card: ModelCard, grammar: str, text: str) -> bool:
    """Whether the text is an answer, whole."""
    ids = tokenizer.encode_plain(text)
    start = matcher(vocabulary(tokenizer, card.eos_ids), grammar)
    return start.try_consume_tokens(ids) == len(ids) and start.is_accepting()


@pytest.mark.parametrize(
    ("build", "texts", "others"),
    [
        (lambda grammars: grammars.json_object(), ["{}", '{"a":[1, {"b": null}]}'], ["[]", "{", "{} ", '"a"']),
        (schema(OBJECT), ['{"a":1}', '{"a": -12}', '{\n  "a": 0\n}'], ['{"a":"1"}', '{"a":1,"b":2}', "{}"]),
        (schema(OBJECT), [], ['{   "a":1}', '{\n\n\n"a":1}']),  # blanks without end are no answer
        (schema(TREE), ["[]", "[[],[[]]]"], ["[1]", "{}"]),
        (schema({}), ["1", "null", '"é\\n"', "[{}]"], ["", "nul", "'a'"]),
        (regex(r"[a-f]{2}\d+"), ["ab1", "ff007"], ["a1", "ab", "ab1 "]),
        (choice("yes", "no", 'é"\\/\n', "no"), ["yes", "no", 'é"\\/\n'], ["y", "maybe", "yesno", ""]),
        (choice("", "a"), ["", "a"], ["b"]),
        (choice(*(f"{place}:" for place in range(2000))), ["7:", "1999:"], ["7", "2000:"]),
        (lark('start: "a" rest\nrest: "(" rest ")" |\n'), ["a", "a(())"], ["a(", "b"]),
        (lark('start: "a" "::=" "b"'), ["a::=b"], ["ab"]),
        (lark('root ::= "a" rest\nrest ::= "(" rest ")" | ""\n'), ["a", "a(())"], ["a(", "b"]),
    ],
)
async def test_a_grammar_takes_what_it_should_and_nothing_else(
    grammars: Grammars, tokenizer: Tokenizer, card: ModelCard, build: Build, texts: list[str], others: list[str]
) -> None:
    grammar = await build(grammars)
    assert [text for text in texts if not follows(tokenizer, card, grammar, text)] == []
    assert [text for text in others if follows(tokenizer, card, grammar, text)] == []


def nested(depth: int) -> dict[str, Any]:
    """A schema whose JSON is so deep."""
    return {"not": nested(depth - 1)} if depth > 1 else {}


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (schema({"type": "word"}), "Invalid type: word"),
        (schema({"not": {}}), 'Unimplemented keys: ["not"]'),
        (schema(nested(MAX_DEPTH)), "Unimplemented"),
        (schema(nested(MAX_DEPTH + 1)), "it is nested more than 32 deep"),
        (schema({"const": float("inf")}), "it holds a number that is not finite"),
        (schema({"$ref": "http://127.0.0.1:1/schema"}), "Resource 'http://127.0.0.1:1/schema' is not present"),
        (schema({"$ref": "#/$defs/nowhere"}), "Pointer '/$defs/nowhere' does not exist"),
        (schema({"$ref": "#"}), "no text matches it"),
        (schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}), "no text"),
        (schema({"type": "integer", "minimum": 5, "maximum": 2}), "Unsatisfiable schema"),
        (schema({"type": "string", "pattern": "("}), "unclosed group"),
        (schema({"description": "x" * MAX_BYTES}), "it has more than 65536 bytes"),
        (regex("("), "unclosed group"),
        (regex("(?=a)b"), "look-around"),
        (regex("(" * 20_000 + ")" * 20_000), "nested"),
        (regex("é" * MAX_BYTES), "it has more than 65536 bytes"),
        (lark("start: nowhere"), 'unknown name: "nowhere"'),
        (lark('start: "a'), "lexer error"),
        (lark('start: start "a"'), "no text matches it"),
        (lark("start: " + "(" * 20_000 + '"a"' + ")" * 20_000), "too deeply nested"),
        (lark("\n".join(f"start{i}: start{i + 1}" for i in range(3000))), "it has more than 1000 rules"),
        (lark("root ::= " + "(" * 3000), "it is nested too deep"),
        (lark("root ::= x" + " " * (16 << 10)), "it has more than 16384 bytes"),
        (lark("a ::= "), "root"),
        (lark(""), "Empty grammar"),
        (choice("x" * MAX_BYTES), "it has more than 65536 bytes"),
    ],
)
async def test_a_bad_grammar_is_refused_with_the_reason(grammars: Grammars, build: Build, reason: str) -> None:
    with pytest.raises(BadRequest, match=r"^Invalid 'here': ") as refusal:
        await build(grammars)
    assert reason in refusal.value.message
    assert (refusal.value.param, refusal.value.code) == ("here", "invalid_value")
    assert len(refusal.value.message) <= len("Invalid 'here': .") + 64
    assert refusal.value.message.isprintable()


async def test_malformed_after_valid_and_valid_again(grammars: Grammars) -> None:
    """Whatever one leaves behind, the next does not find it."""
    for _ in range(100):
        good = await grammars.json_schema(OBJECT, param="here")
        with pytest.raises(BadRequest):
            await grammars.json_schema({"type": "word"}, param="here")
        grammars._known.clear()
        assert await grammars.json_schema(OBJECT, param="here") == good


async def test_what_was_compiled_is_remembered_up_to_a_bound(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    compile_once = Grammars._try

    def count(self: Grammars, kind: str, text: str) -> str | ValueError:
        compiled.append(text)
        return compile_once(self, kind, text)

    monkeypatch.setattr(Grammars, "_try", count)
    for _ in range(3):
        await grammars.regex("a", param="here")
        with pytest.raises(BadRequest):
            await grammars.regex("(", param="there")
    assert compiled == ["a", "("]
    for place in range(module._CACHED - 1):
        await grammars.regex(f"b{place}", param="here")
        await grammars.regex("a", param="here")
    assert len(grammars._known) == module._CACHED
    assert compiled.count("a") == 1
    with pytest.raises(BadRequest):
        await grammars.regex("(", param="there")
    assert compiled.count("(") == 2


async def test_the_event_loop_goes_on_while_a_grammar_compiles(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both threads are held; a third grammar waits for one, not for both."""
    held = [threading.Event(), threading.Event()]
    compile_once = Grammars._try

    def hold(self: Grammars, kind: str, text: str) -> str | ValueError:
        if text in ("0", "1"):
            held[int(text)].wait()
        return compile_once(self, kind, text)

    monkeypatch.setattr(Grammars, "_try", hold)
    slow = [asyncio.create_task(grammars.regex(text, param="here")) for text in ("0", "1")]
    await asyncio.sleep(0)
    third = asyncio.create_task(grammars.regex("2", param="here"))
    held[0].set()
    await third
    assert not slow[1].done()
    held[1].set()
    await asyncio.gather(*slow)


async def test_what_takes_too_long_is_refused(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(module, "TIME_LIMIT_S", 0.01)
    monkeypatch.setattr(Grammars, "_try", lambda *_: released.wait())
    with pytest.raises(BadRequest, match=r"compiling it takes more than 0\.01 seconds"):
        await grammars.regex("a", param="here")
    released.set()


async def test_only_tokens_that_add_text_are_ever_let_through(
    grammars: Grammars, tokenizer: Tokenizer, card: ModelCard
) -> None:
    """Special tokens and rows without a token add none, whatever bytes a grammar takes; any ending token ends it."""
    any_text = matcher(vocabulary(tokenizer, card.eos_ids), await grammars.regex("(?s:.)*", param="here"))
    mask = any_text.compute_bitmask()
    allowed = {token for token in range(8 * len(mask)) if mask[token // 8] >> token % 8 & 1}
    textual = {token for token, content in enumerate(tokenizer.token_bytes) if content}
    assert allowed - textual == set(card.eos_ids)
    assert allowed & textual


async def test_special_tokens_can_be_named_in_lark(grammars: Grammars) -> None:
    await grammars.lark('start: <|start|> "a"', param="here")
    with pytest.raises(BadRequest, match="unknown special token"):
        await grammars.lark("start: <|nope|>", param="here")
