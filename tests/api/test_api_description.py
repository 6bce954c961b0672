"""What the server says of its API is what it does: /openapi.json, /v1/capabilities and what else it tells of itself."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from server.api.endpoints import ENDPOINTS
from server.app import BODIES

EXAMPLES = [(path, name) for path, endpoint in ENDPOINTS.items() for name in endpoint.examples]
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
LEAST = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
}


@pytest.fixture(scope="module")
def document(start_server) -> dict[str, Any]:
    return start_server().http.get("/openapi.json").json()


@pytest.fixture(scope="module")
def roomy(start_server):
    """A token is a byte there, and tools are described in words."""
    served = start_server()
    served.engine.longest = 4096
    return served


@pytest.fixture(scope="module")
def parameters(start_server) -> dict[str, dict[str, Any]]:
    endpoints = start_server().http.get("/v1/capabilities").json()["endpoints"]
    return {path: endpoint["parameters"] for path, endpoint in endpoints.items() if "parameters" in endpoint}


def check(document: dict[str, Any], answer: Any, path: str, method: str, status: int, kind: str) -> None:
    content = document["paths"][path][method]["responses"][str(status)]["content"][kind]
    schema = content["schema"]
    if kind == "text/event-stream":
        data = schema["properties"]["data"]
        schema = data.get("anyOf", [data])[0]["contentSchema"]
    schema = {**schema, "components": document["components"]}
    Draft202012Validator(schema).validate(answer)


def test_the_document_is_openapi_and_tells_of_every_route(document, served):
    validate(document)
    assert document["paths"].keys() == ENDPOINTS.keys()
    names = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(set(names)) == len(names)
    assert not [name for name in document["components"]["schemas"] if "__" in name]


def test_every_field_says_what_it_means(document):
    schemas = document["components"]["schemas"]
    for body in BODIES.values():
        silent = [name for name, field in schemas[body.__name__]["properties"].items() if not field.get("description")]
        assert not silent, f"{body.__name__}: {silent}"


@pytest.mark.parametrize(("path", "name"), EXAMPLES)
def test_each_example_is_taken_and_answered_as_described(roomy, document, path, name):
    examples = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    body = examples[name]["value"]
    answer = roomy.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        check(document, answer.json(), path, "post", 200, "application/json")
        return
    events = list(data_of(answer.text))
    assert len(events) > 3
    for event in events:
        check(document, event, path, "post", 200, "text/event-stream")
    schema = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    last = answer.text.splitlines()[-2].removeprefix("data: ")
    assert (last == "[DONE]") == ("[DONE]" in str(schema["properties"]["data"]))


def data_of(stream: str) -> Iterator[Any]:
    for line in stream.splitlines():
        kind, _, data = line.partition(": ")
        if kind == "data" and data != "[DONE]":
            yield json.loads(data)


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/{model_id}", "/v1/capabilities", "/tokenizer_info", "/version"]
)
def test_what_is_told_has_the_described_shape(served, document, path):
    answer = served.http.get(path.replace("{model_id}", "bytes")).json()
    check(document, answer, path, "get", 200, "application/json")


@pytest.mark.parametrize("path", BODIES)
def test_faults_have_the_described_shape(served, document, path):
    for body, status in (({"no": "field"}, 400), ({**LEAST.get(path, {}), "x": "x" * 2**17}, 413)):
        answer = served.http.post(path, json=body)
        assert answer.status_code == status
        check(document, answer.json(), path, "post", status, "application/json")


def test_only_what_is_open_is_described_as_open(serve, document):
    served = serve(api_keys=("key",))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            status = served.http.request(method, path).status_code
            assert (status == 401) == (operation.get("security") != [])
            assert ("401" in operation["responses"]) == (status == 401)


@pytest.mark.parametrize("path", GENERATING)
def test_the_bounds_that_are_told_are_the_bounds(served, parameters, path):
    told = 0
    for name, parameter in parameters[path].items():
        beyond = [parameter["minimum"] - 1] if "minimum" in parameter else []
        beyond += [parameter["maximum"] + 1] if "maximum" in parameter else []
        beyond += [parameter["exclusiveMinimum"]] if "exclusiveMinimum" in parameter else []
        for value in beyond:
            answer = served.http.post(path, json=LEAST[path] | {name: value})
            assert answer.status_code == 400, (name, value)
            assert name in answer.json()["error"]["message"]
            told += 1
    assert told > 5


@pytest.mark.parametrize("path", GENERATING)
def test_what_is_told_to_be_the_default_changes_nothing(own_server, parameters, path):
    told = 0
    for name, parameter in parameters[path].items():
        if parameter.get("default") is None:
            continue
        least = LEAST[path] | {"seed": 1} | ({"logprobs": True} if name == "top_logprobs" else {})
        for body in (least, least | {name: parameter["default"]}):
            assert own_server.http.post(path, json=body).status_code == 200, name
        first, second = own_server.engine.orders
        assert first == second, name
        own_server.engine.forget()
        told += 1
    assert told > 3


@pytest.mark.parametrize("path", GENERATING)
def test_what_is_told_to_be_refused_or_without_effect_is(served, parameters, path):
    effects = {parameter["effect"] for parameter in parameters[path].values()}
    assert {"full", "none"} <= effects <= {"full", "none", "refused"}
    for name, parameter in parameters[path].items():
        if parameter["effect"] == "refused":
            answer = served.http.post(path, json=LEAST[path] | {name: True})
            assert answer.status_code == 400, name
        if parameter["effect"] == "none":
            value = {"string": "a", "object": {}, "boolean": False, "array": ["text"]}[parameter["types"][0]]
            answer = served.http.post(path, json=LEAST[path] | {name: value})
            assert answer.headers["x-headrace-ignored"] == name


def test_the_model_is_told(served):
    told = served.http.get("/v1/capabilities").json()
    assert told["version"] == served.http.get("/version").json()["version"] == version("headrace")
    assert (told["model"]["id"], told["model"]["context_length"], told["model"]["vocab_size"]) == ("bytes", 512, 264)
    temperature = told["endpoints"]["/v1/chat/completions"]["parameters"]["temperature"]
    assert (temperature["minimum"], temperature["maximum"], temperature["default"]) == (0, 2, 1)
    assert temperature["types"] == ["number"]


def test_the_tokenizer_is_told(served):
    told = served.http.get("/tokenizer_info").json()
    assert (told["eos_token"], told["bos_token"], told["eos_token_ids"]) == ("<eos>", "<bos>", [256])
    assert told["chat_template"] == served.engine.card.chat_template
    ids = served.http.post("/tokenize", json={"prompt": told["eos_token"], "add_special_tokens": False}).json()[
        "tokens"
    ]
    assert ids == told["eos_token_ids"]


def test_the_page_is_open_and_loads_nothing_from_elsewhere(serve):
    answer = serve(api_keys=("key",)).http.get("/docs")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http:" not in answer.text
    assert "https:" not in answer.text
