"""POST /v1/embeddings over HTTP, and with the openai package; the vectors are what the engine of these tests says."""

import base64
import json
import struct

import openai
import pytest

from model.batch import Reading
from server.generator import AT_ONCE

HI = [72.0, 105.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def embed(served, **body):
    answer = served.http.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("given", "vectors"),
    [
        ("Hi", [HI]),
        (["Hi", "H"], [HI, [72.0, *HI[2:], 0.0]]),
        ([72, 105], [HI]),
        ([[72, 105], [72]], [HI, [72.0, *HI[2:], 0.0]]),
    ],
)
def test_each_input_has_its_vector_in_order(served, given, vectors):
    answer = embed(served, input=given)
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)]
    tokens = sum(2 if vector == HI else 1 for vector in vectors)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer == {"object": "list", "data": data, "model": "bytes", "usage": usage}


def test_what_is_pooled_is_what_was_asked_for(served):
    for fields, reading in (
        ({}, Reading()),
        ({"pooling": "mean", "dimensions": 3}, Reading(dimensions=3)),
        ({"pooling": "last"}, Reading(start=4)),
    ):
        embed(served, input="Hello", **fields)
        order = served.engine.orders[-1]
        assert (order.reading, order.max_tokens) == (reading, 0)


def test_base64_is_of_little_endian_fp32(served):
    (told,) = embed(served, input="Hi", encoding_format="base64")["data"]
    assert struct.unpack("<8f", base64.b64decode(told["embedding"])) == tuple(HI)


def test_the_openai_package_gets_floats_though_it_asks_for_base64(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.embeddings.create(model="bytes", input=["Hi", "Hi"], user="me")
        assert [told.embedding for told in answer.data] == [HI, HI]
        assert answer.usage.total_tokens == 4
        short = client.embeddings.create(model="bytes", input="Hi", dimensions=2, encoding_format="float")
        assert short.data[0].embedding == HI[:2]


def test_a_long_list_is_with_the_engine_by_and_by(own_server):
    engine = own_server.engine
    engine.is_held = True
    body = json.dumps({"input": ["Hi"] * (AT_ONCE + 3)}).encode()
    with own_server.send("/v1/embeddings", body, "Connection: close") as connection:
        engine.wait_until(lambda: len(engine.orders) == AT_ONCE)
        for place in range(AT_ONCE + 3):
            engine.wait_until(lambda place=place: len(engine.orders) > place)
            engine.find(place)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert len(engine.orders) == AT_ONCE + 3
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["data"]) == AT_ONCE + 3


def test_it_counts_as_a_request_that_ended_well(own_server):
    embed(own_server, input=["Hi", "Hello"])
    own_server.wait_for('headrace_requests_finished_total{reason="stop"}', 1)
    assert own_server.gained("headrace_requests_accepted_total") == 1
    assert own_server.gained("headrace_prompt_tokens_total") == 7
    assert own_server.gained("headrace_generation_tokens_total") == 0
    assert own_server.gained("headrace_time_to_first_token_seconds_count") == 0


def test_a_client_that_leaves_cancels_what_is_queued_and_nothing_more_is(own_server):
    engine = own_server.engine
    engine.is_held = True
    with own_server.send("/v1/embeddings", json.dumps({"input": ["Hi"] * (AT_ONCE + 3)}).encode()):
        engine.wait_until(lambda: len(engine.orders) == AT_ONCE)
    engine.wait_until(lambda: len(engine.cancelled) == AT_ONCE)
    own_server.wait_for('headrace_requests_finished_total{reason="disconnect"}', 1)
    assert len(engine.orders) == AT_ONCE


def test_what_the_engine_says_of_a_failure_is_told(own_server):
    own_server.engine.is_held = True
    with own_server.send("/v1/embeddings", b'{"input": "Hi"}') as connection:
        own_server.engine.wait_until(lambda: own_server.engine.orders)
        own_server.engine.say(0, "", "error", "the model computed hidden states that are not finite or too large")
        assert connection.recv(65536).startswith(b"HTTP/1.1 500")


VALID = {
    "/v1/embeddings": {"input": "Hi"},
    "/v1/decisions": {"input": "Hi", "questions": [{"type": "predicate", "instructions": "Is it?"}]},
}


@pytest.mark.parametrize("path", VALID)
def test_loading_draining_and_a_full_queue_are_told_as_for_texts(own_server, path):
    def code() -> tuple[int, str]:
        answer = own_server.http.post(path, json=VALID[path])
        return answer.status_code, answer.json()["error"]["code"]

    ready, own_server.engine.ready = own_server.engine.ready, None
    assert code() == (503, "model_loading")
    own_server.engine.ready = ready
    own_server.engine.is_full = True
    assert code() == (503, "server_is_overloaded")
    own_server.engine.is_full = False
    own_server.app.state.service.draining = True
    assert code() == (503, "server_draining")
