"""The exact shape of answers, streamed and not."""

import json

import httpx
import pytest

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def events(answer: httpx.Response) -> list[dict]:
    *frames, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


@pytest.fixture
def stream(served):
    def run(path: str, **fields: object) -> list[dict]:
        answer = served.http.post(path, json={"stream": True, **fields})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        return events(answer)

    return run


def test_a_chat_stream_opens_with_roles_and_closes_each_choice_with_an_empty_delta(stream):
    chunks = stream("/v1/chat/completions", **CHAT, n=2, max_tokens=3)
    assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for index in (0, 1):
        first, *middle, last = [choice for choice in choices if choice["index"] == index]
        opening = {"role": "assistant", "content": ""}
        assert first == {"index": index, "delta": opening, "logprobs": None, "finish_reason": None}
        assert [choice["delta"] for choice in middle] == [{"content": char} for char in "Hel"]
        assert all(choice["finish_reason"] is None for choice in middle)
        assert last == {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "Hi"})])
def test_usage_comes_last_and_is_null_before(stream, path, body):
    *chunks, last = stream(path, **body, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len("Hello, world!") + 1
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]


@pytest.mark.parametrize("include_usage", [True, False])
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "Hi"})])
def test_usage_can_be_told_with_every_event(stream, path, body, include_usage):
    options = {"include_usage": include_usage, "continuous_usage_stats": True}
    chunks = stream(path, **body, n=2, stream_options=options)
    usages = [chunk["usage"] for chunk in chunks if chunk["usage"]]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (2, 2 * len("Hello, world!") + 2)
    assert len({usage["prompt_tokens"] for usage in usages}) == 1
    assert all(chunk["usage"] for chunk in chunks if any(choice.get("text") for choice in chunk["choices"]))
    assert (chunks[-1]["choices"] == []) == include_usage


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "Hi"})])
def test_timings_are_told_where_they_are_asked_for(served, stream, path, body):
    whole = served.http.post(path, json={**body, "return_timings": True}).json()
    *chunks, last = stream(path, **body, return_timings=True)
    for told in (whole, last):
        timings, tokens = told["timings"], len("Hello, world!") + 1
        assert timings["predicted_n"] == tokens
        assert timings["prompt_n"] + timings["cache_n"] == whole["usage"]["prompt_tokens"]
        assert timings["predicted_per_second"] == pytest.approx((tokens - 1) / timings["predicted_ms"] * 1000, rel=0.05)
        assert min(timings["queue_ms"], timings["prompt_ms"], timings["predicted_ms"]) >= 0
    assert (last["choices"], last["usage"]) == ([], None)
    assert not any("timings" in chunk for chunk in chunks)
    assert "timings" not in served.http.post(path, json=body).json()


@pytest.mark.parametrize("fields", [{"prompt": ["Hi", "you"]}, {"prompt": [[1, 2], [3]], "logprobs": 2}])
def test_a_stream_of_completions_adds_up_to_the_whole(served, stream, fields):
    whole = served.http.post("/v1/completions", json={**fields, "n": 2}).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    parts = [choice for chunk in stream("/v1/completions", **fields, n=2) for choice in chunk["choices"]]
    for choice in whole["choices"]:
        mine = [part for part in parts if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert [part["finish_reason"] for part in mine if part["finish_reason"]] == [choice["finish_reason"]]
        for name, values in (choice["logprobs"] or {}).items():
            assert [value for part in mine if part["logprobs"] for value in part["logprobs"][name]] == values


def test_chat_logprobs_in_a_stream_are_those_of_the_whole(served, stream):
    fields = {**CHAT, "logprobs": True, "top_logprobs": 3}
    whole = served.http.post("/v1/chat/completions", json=fields).json()["choices"][0]["logprobs"]["content"]
    parts = [choice["logprobs"] for chunk in stream("/v1/chat/completions", **fields) for choice in chunk["choices"]]
    assert [entry for part in parts if part for entry in part["content"]] == whole
    assert len(whole) == len("Hello, world!")


@pytest.mark.parametrize("prompt", ["Grüße ", [ord("a"), 0xE2, 0x82, 0xAC]])
def test_echo_puts_the_prompt_before_every_choice(served, stream, prompt):
    text = prompt if isinstance(prompt, str) else bytes(prompt).decode()
    whole = served.http.post("/v1/completions", json={"prompt": prompt, "echo": True, "n": 2}).json()
    assert [choice["text"] for choice in whole["choices"]] == [text + "Hello, world!"] * 2
    parts = [
        choice for chunk in stream("/v1/completions", prompt=prompt, echo=True, n=2) for choice in chunk["choices"]
    ]
    for index in (0, 1):
        assert "".join(part["text"] for part in parts if part["index"] == index) == text + "Hello, world!"


def test_no_text_breaks_a_line_of_a_stream_for_any_reader(serve):
    served = serve()
    served.engine.answer = "a\u2028b\u2029c\x85d\r\ne\x0bf\x1cg\x00"
    with served.http.stream(
        "POST", "/v1/completions", json={"prompt": "Hi", "max_tokens": 99, "stream": True}
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]  # splits as str.splitlines does
    texts = [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines[:-1]]
    assert "".join(texts) == served.engine.answer


def test_a_token_that_is_no_text_is_named_by_its_bytes(serve):
    served = serve()
    served.engine.answer = "€"
    logprobs = served.http.post("/v1/completions", json={"prompt": "Hi", "logprobs": 0}).json()["choices"][0][
        "logprobs"
    ]
    assert logprobs["tokens"] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert logprobs["text_offset"] == [0, 0, 0]
    assert [list(top) for top in logprobs["top_logprobs"]] == [[token] for token in logprobs["tokens"]]


def test_sampling_reaches_the_engine_as_it_was_sent(serve):
    served = serve()
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 1, "seed": 5}
    fields |= {"frequency_penalty": -1, "repetition_penalty": 1.5, "logit_bias": {"3": -2}, "min_tokens": 2}
    served.http.post("/v1/completions", json={"prompt": "Hi", "n": 2, **fields, "stop_token_ids": [9]})
    first, second = (order.sampling for order in served.engine.orders)
    assert (first.seed, second.seed) == (5, 6)
    assert first.logit_bias == {3: -2.0}
    assert 9 in first.ending_ids
    for name in fields.keys() - {"seed", "logit_bias"}:
        assert getattr(first, name) == fields[name]


def test_requests_without_a_seed_draw_differently(serve):
    served = serve()
    for _ in range(2):
        served.http.post("/v1/completions", json={"prompt": "Hi"})
    first, second = (order.sampling.seed for order in served.engine.orders)
    assert first != second


def test_tokenizing_and_detokenizing_are_inverse(served):
    text = "Grüße, 世界 \x00"
    answer = served.http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) == len(text.encode())
    assert answer["max_model_len"] == 512
    assert served.http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}


def test_tokenizing_a_conversation_gives_the_prompt_that_the_model_sees(served):
    answer = served.http.post("/tokenize", json=CHAT).json()
    assert bytes(answer["tokens"]) == b"[user]Hi[assistant]"
    assert answer["token_strs"] is None


def test_models_and_the_openapi_document_describe_what_is_served(served):
    (model,) = served.http.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("bytes", "model", 512)
    assert served.http.get("/v1/models/bytes").json() == model
    assert served.http.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    document = served.http.get("/openapi.json").json()
    schema = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    described = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    assert {"messages", "temperature", "max_completion_tokens"} <= described["properties"].keys()


def test_a_served_name_replaces_the_models_own(serve):
    served = serve(served_model_name="org/my-model")
    assert served.http.get("/v1/models/org%2Fmy-model").json()["id"] == "org/my-model"
    assert served.http.get("/v1/models/org/my-model").json()["id"] == "org/my-model"
    answer = served.http.post("/v1/completions", json={"prompt": "Hi", "model": "org/my-model"})
    assert answer.json()["model"] == "org/my-model"
    assert served.http.post("/v1/completions", json={"prompt": "Hi", "model": "bytes"}).status_code == 404
