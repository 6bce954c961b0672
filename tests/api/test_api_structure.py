"""What the engine is told of the form that an answer is to have, and how an answer that cannot go on is told."""

import json

import pytest

EOS = 256
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def ordered(served, path="/v1/chat/completions", **body):
    """The sampling that the engine gets for a body."""
    served.engine.forget()
    prompt = CHAT if "chat" in path else {"prompt": "Hi"}
    answer = served.http.post(path, json={**prompt, **body})
    assert answer.status_code == 200, answer.text
    (order,) = served.engine.orders
    return order


def grammar(served, path="/v1/chat/completions", **body):
    return ordered(served, path, **body).sampling.grammar


def test_the_forms_of_openai_and_of_vllm_mean_the_same(served):
    asked = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    want = grammar(served, response_format=asked)
    assert json.loads(want)["grammars"][0]["json_schema"]["required"] == ["a"]
    for given in (SCHEMA, json.dumps(SCHEMA)):
        for path in ("/v1/chat/completions", "/v1/completions"):
            assert grammar(served, path, structured_outputs={"json": given}) == want
    anything = grammar(served, response_format={"type": "json_object"})
    assert anything == grammar(served, "/v1/completions", structured_outputs={"json_object": True})
    assert anything not in (want, None)


def test_without_a_form_there_is_no_grammar(served):
    assert grammar(served) is None
    assert grammar(served, response_format={"type": "text"}) is None
    assert grammar(served, "/v1/completions", structured_outputs=None) is None


def test_patterns_choices_and_grammars_are_told_as_such(served):
    forms = [
        {"regex": "a|b"},
        {"choice": ["a", "b"]},
        {"grammar": 'start: "a" | "b"'},
        {"grammar": 'root ::= "a" | "b"'},
    ]
    told = [grammar(served, "/v1/completions", structured_outputs=form) for form in forms]
    assert None not in told
    assert told == [grammar(served, structured_outputs=form) for form in forms]


def test_names_that_change_nothing_are_reported(served):
    schema = {"name": "x", "description": "y", "schema": SCHEMA}
    answer = served.http.post(
        "/v1/chat/completions", json={**CHAT, "response_format": {"type": "json_schema", "json_schema": schema}}
    )
    ignored = answer.headers["x-headrace-ignored"]
    assert ignored == "response_format.json_schema.description, response_format.json_schema.name"


def test_ids_and_words_reach_the_engine_as_tokens(served):
    sampling = ordered(served, allowed_token_ids=[5, 3, 5], bad_words=["no", " no", "é"]).sampling
    assert sampling.allowed_token_ids == (5, 3, 5)
    words = ("no", " no", "é", " é")
    assert set(sampling.bad_words) == {tuple(word.encode()) for word in words}


def test_the_models_end_counts_for_a_grammar_though_it_is_to_be_ignored(served):
    """It is the last resort then: chosen where the grammar leaves nothing else."""
    bound = ordered(served, ignore_eos=True, structured_outputs={"regex": "a*"})
    assert (bound.ending_ids, bound.sampling.last_resort_ids) == ([EOS], (EOS,))
    free = ordered(served, ignore_eos=True)
    assert (free.ending_ids, free.sampling.last_resort_ids) == ([], ())
    heeded = ordered(served, structured_outputs={"regex": "a*"}, stop_token_ids=[65])
    assert (heeded.ending_ids, heeded.sampling.last_resort_ids) == ([EOS, 65], ())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_that_cannot_go_on_is_the_requests_fault(own_server, path, is_streamed):
    """Before the first token as a status, after it as an event; never as a fault of the server."""
    engine = own_server.engine
    engine.is_held = True
    body = CHAT if "chat" in path else {"prompt": "Hi"}
    for place, said in enumerate(["", "Hello"]):
        sent = json.dumps({**body, "stream": is_streamed, "allowed_token_ids": [65]}).encode()
        with own_server.send(path, sent, "Connection: close") as connection:
            engine.wait_until(lambda wanted=place + 1: len(engine.streams) == wanted)
            if said:
                engine.say(place, said)
            if said and is_streamed:
                while b"Hello" not in connection.recv(65536):
                    pass
            engine.say(place, "", "dead_end", "nothing is left")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b'"message":"The answer cannot go on: nothing is left."' in answer
        assert b'"code":"no_token_allowed"' in answer
        assert b"invalid_request_error" in answer
        assert answer.startswith(b"HTTP/1.1 400") != bool(said and is_streamed)
        assert b"[DONE]" not in answer
