"""Bad input: each row gets one clear answer, and so does what the rows do not say."""

import re
from pathlib import Path

import bad_input
import pytest
from bad_input import ASKED, PATHS, ROWS, VALID, name_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def asked(start_server):
    """A server for each state, by name."""
    servers = {}

    def ask(state):
        if state not in servers:
            servers[state] = start_server(max_body_bytes=bad_input.MAX_BODY, api_keys=(bad_input.KEY,))
            change(servers[state], state)
        return servers[state]

    return ask


def change(served, state):
    if state == "full":
        served.engine.is_full = True
    elif state == "small":
        served.engine.longest = 100
    elif state == "draining":
        served.app.state.service.draining = True


@pytest.mark.parametrize("row", ASKED, ids=name_of)
def test_bad_input_gets_one_clear_answer(asked, row):
    served = asked(row.get("server"))
    bad_input.check(row, bad_input.ask(served.port, bad_input.request_of(row)))


def test_every_row_is_asked_or_proven_elsewhere():
    assert {row["row"] for row in ROWS} >= set(range(1, 73))
    for row in ROWS:
        if "proven_by" in row:
            path, name = row["proven_by"].split("::")
            assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", ["chat", "completions", "responses"])
def test_a_stream_is_refused_with_a_plain_status(served, path):
    body = VALID[path] | {"stream": True, "temperature": 3}
    answer = served.http.post(PATHS[path], json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")


@pytest.mark.parametrize("text", ["\x1b[31mred\r\n", "é\u202e" * 50, "a" * 5000])
def test_no_more_than_64_characters_of_input_come_back_and_none_that_steers_a_terminal(served, text):
    for body in ({text: 1}, {"model": text}, {"messages": [{"role": text, "content": ""}]}):
        message = served.http.post(PATHS["chat"], json=VALID["chat"] | body).json()["error"]["message"]
        assert message.isprintable()
        assert text[:65] not in message


def test_a_body_full_of_errors_is_answered_without_listing_them(served):
    body = "{" + ",".join(f'"x{i}":0' for i in range(5000)) + "}"
    answer = served.http.post(PATHS["chat"], content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "invalid fields" in answer.json()["error"]["message"]


def test_too_large_a_body_is_refused_by_its_announced_length_before_it_is_sent(served):
    with served.connect() as connection:
        head = (
            "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
        )
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # until the server closes
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"request_too_large" in answer


def test_too_large_a_body_without_a_length_is_refused_on_the_way(served):
    with served.connect() as connection:
        head = (
            "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        for _ in range(9):
            connection.sendall(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


TREE = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}
GOOD = [
    ("chat", {"temperature": 1e-12}),
    ("chat", {"temperature": 0, "n": 4}),
    ("chat", {"top_k": -1}),
    ("chat", {"top_k": 2**31 - 1}),
    ("chat", {"seed": -(2**63)}),
    ("chat", {"seed": None, "stop": None, "tools": None, "logit_bias": None, "n": None, "stream": None}),
    ("chat", {"stop": []}),
    ("chat", {"stop": ["x" * 256] * 4}),
    ("chat", {"logit_bias": {"0": -100, "263": 100.0}}),
    ("chat", {"stop_token_ids": [1] * 128, "min_tokens": 0, "ignore_eos": False}),
    ("chat", {"messages": [{"role": "developer", "content": [{"type": "text", "text": "a\u0000b"}]}]}),
    ("chat", {"messages": [{"role": "user", "content": "<eos><bos>"}]}),
    ("chat", {"max_tokens": 5, "max_completion_tokens": 5}),
    ("chat", {"logprobs": True, "top_logprobs": 0}),
    ("chat", {"logprobs": False, "response_format": {"type": "text"}, "model": "bytes"}),
    ("chat", {"response_format": {"type": "json_object"}}),
    ("chat", {"response_format": {"type": "json_schema", "json_schema": {"schema": TREE}}}),
    ("chat", {"response_format": {"type": "text"}, "structured_outputs": {"choice": ["a", "b"]}}),
    ("chat", {"allowed_token_ids": [1] * 1024, "bad_words": ["x" * 256] * 128}),
    ("completions", {"structured_outputs": {"json": "{}"}}),
    ("completions", {"structured_outputs": {"grammar": "start: /a/ start |"}}),
    ("completions", {"structured_outputs": None, "allowed_token_ids": None, "bad_words": []}),
    ("completions", {"prompt": ""}),
    ("completions", {"prompt": ["a", "b"]}),
    ("completions", {"prompt": [1, 2, 3]}),
    ("completions", {"prompt": [[1], [2, 263]], "n": 2, "best_of": 2}),
    ("completions", {"prompt": ["a"] * 64}),
    ("completions", {"logprobs": 0}),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}),
    ("responses", {"truncation": "disabled", "background": False, "include": [], "text": {"format": {"type": "text"}}}),
    ("responses", {"previous_response_id": None, "conversation": None, "tools": None, "reasoning": {"effort": None}}),
    ("completions", {"max_tokens": 0, "prompt_logprobs": 0}),
    ("completions", {"prompt": [[65]], "max_tokens": 0, "echo": True, "logprobs": 20}),
    ("chat", {"prompt_logprobs": 20, "n": 2}),
    ("embeddings", {"input": "", "dimensions": 8}),
    ("embeddings", {"input": ["a"] * 2048, "encoding_format": "base64"}),
    ("embeddings", {"input": [65] * 512, "pooling": "last", "model": "bytes"}),
    (
        "decisions",
        {"input": [{"role": "user", "type": "message", "content": [{"type": "input_json", "data": {"a": [1]}}]}]},
    ),
    (
        "decisions",
        {"questions": [{"type": "choice", "instructions": "a", "choices": [{"value": True}, {"value": "true"}]}]},
    ),
]


@pytest.mark.parametrize(("path", "fields"), GOOD)
def test_what_is_allowed_is_answered(served, path, fields):
    answer = served.http.post(PATHS[path], json=VALID[path] | fields)
    assert answer.status_code == 200, answer.text[:300]
    assert "x-headrace-ignored" not in answer.headers


def test_of_duplicate_keys_the_last_wins(served):
    body = '{"prompt": "a", "max_tokens": 3, "max_tokens": 5}'
    answer = served.http.post(PATHS["completions"], content=body, headers={"content-type": "application/json"})
    assert answer.json()["choices"][0]["text"] == "Hello"


def test_fields_without_effect_are_named_in_a_header(served):
    fields = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": None}
    body = {"messages": [{"role": "user", "name": "Ada", "content": "Hi"}], **fields}
    answer = served.http.post(PATHS["chat"], json=body)
    assert answer.status_code == 200
    assert answer.headers["x-headrace-ignored"] == "metadata, store, user, messages.name"


def test_a_lenient_server_names_unknown_fields_instead_of_refusing_them(serve):
    served = serve(lenient=True)
    body = VALID["chat"] | {"temprature": 1, "bad\r\nname": 2, "messages": [{"role": "user", "content": "", "x": 1}]}
    answer = served.http.post(PATHS["chat"], json=body)
    assert answer.status_code == 200
    assert answer.headers["x-headrace-ignored"] == "temprature, bad??name, messages.x"
    assert served.http.post(PATHS["chat"], json=body | {"temperature": "1"}).status_code == 400
