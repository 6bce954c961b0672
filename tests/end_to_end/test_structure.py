"""Answers follow what they were asked to, by construction: a model of random weights would rather write anything."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from random_schemas import Tally, ask, random_schemas
from support import RunningServer, running_server

Body = dict[str, Any]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "sizes": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    with running_server("--model", str(tiny_model), "--check-invariants") as server:
        yield server
        assert server.metric("headrace_kv_invariant_violations_total") == 0


def complete(server: RunningServer, **fields: Any) -> Body:
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Say it.", **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return choice


async def test_every_finished_answer_follows_its_schema(server: RunningServer) -> None:
    schemas = random_schemas(100)
    tally: Tally = await ask(server.url, schemas, 32, prompt="JSON:", max_tokens=300)
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.finished + tally.cut == len(schemas)
    assert tally.finished > 60
    assert len(tally.kinds) > 4


@pytest.mark.parametrize("temperature", [0, 1])
def test_patterns_choices_and_grammars_are_followed_to_the_end(server: RunningServer, temperature: int) -> None:
    lark = 'start: "(" start ")" | LETTER\nLETTER: /[a-c]/'
    gbnf = 'root ::= "(" root ")" | [a-c]'
    for form, wanted in [
        ({"regex": r"\d{3} (a|b)+!"}, r"\d{3} (a|b)+!"),
        ({"choice": ["yes", "no", "é or ü"]}, "yes|no|é or ü"),
        ({"grammar": lark}, r"\(*[abc]\)*"),
        ({"grammar": gbnf}, r"\(*[abc]\)*"),
    ]:
        choice = complete(server, structured_outputs=form, max_tokens=400, temperature=temperature, seed=3)
        assert choice["finish_reason"] in ("stop", "length")
        if choice["finish_reason"] == "stop":
            assert re.fullmatch(wanted, choice["text"])
            assert choice["text"].count("(") == choice["text"].count(")")


def test_a_chat_has_the_form_it_was_asked_for(server: RunningServer) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["left", "right"]}, "strict": True}}
    body = {"messages": [{"role": "user", "content": "Where?"}], "response_format": asked, "n": 4, "max_tokens": 50}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    assert {json.loads(choice["message"]["content"]) for choice in answer["choices"]} <= {"left", "right"}
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop"] * 4


def test_a_limit_cuts_the_answer_and_says_so(server: RunningServer) -> None:
    whole = complete(server, structured_outputs={"regex": "a{20}b"}, max_tokens=100)
    assert (whole["text"], whole["finish_reason"]) == ("a" * 20 + "b", "stop")
    cut = complete(server, structured_outputs={"regex": "a{20}b"}, max_tokens=20)
    assert (cut["text"], cut["finish_reason"]) == ("a" * 20, "length")


def test_where_only_an_end_can_follow_the_answer_ends_whatever_forbids_it(server: RunningServer) -> None:
    """Elsewhere `min_tokens` and `ignore_eos` hold: another token is taken for as long as there is one."""
    for forbids in ({"min_tokens": 30}, {"ignore_eos": True}, {"min_tokens": 30, "ignore_eos": True}):
        bound = complete(server, structured_outputs={"regex": "a{2,4}"}, max_tokens=40, **forbids)
        assert (bound["text"], bound["finish_reason"]) == ("aaaa", "stop")
        free = complete(server, structured_outputs={"regex": "a*"}, max_tokens=40, **forbids, temperature=0)
        assert len(free["text"]) >= 30


def test_lists_of_tokens_and_words_hold_beside_a_grammar(server: RunningServer) -> None:
    digits = [token for token in range(256) if token_text(server, token).isdigit()]
    assert len(digits) == 10
    choice = complete(server, allowed_token_ids=digits, max_tokens=100, bad_words=["7", "12"])
    assert re.fullmatch(r"[0-9]{100}", choice["text"])
    assert not re.search("7|12", choice["text"])
    both = complete(server, allowed_token_ids=digits, max_tokens=100, structured_outputs={"regex": "[a-z0-9]{9}"})
    assert re.fullmatch(r"[0-9]{9}", both["text"])


def token_text(server: RunningServer, token: int) -> str:
    answer: Body = httpx.post(f"{server.url}/detokenize", json={"tokens": [token]}).json()
    text: str = answer["prompt"]
    return text


def test_a_request_that_leaves_no_token_is_refused_and_the_engine_lives_on(server: RunningServer) -> None:
    engine = server.engine
    body = {"prompt": "Hi", "structured_outputs": {"regex": "ab"}, "bad_words": ["b"], "max_tokens": 9}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "no_token_allowed"
    assert server.engine == engine


def test_an_answer_goes_on_in_its_grammar_when_the_engine_is_killed(server: RunningServer) -> None:
    body: Body = {"prompt": "Say it.", "structured_outputs": {"json": SCHEMA}, "max_tokens": 300, "seed": 5, "n": 2}
    want = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"]
    texts, ends = ["", ""], ["", ""]
    killed = 0
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}, timeout=120) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["text"]
                ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
            if not killed and len(texts[0]) > 5:
                killed = server.engine
                os.kill(killed, signal.SIGKILL)
    assert killed not in (0, server.engine)
    assert texts == [choice["text"] for choice in want]
    assert ends == [choice["finish_reason"] for choice in want]
