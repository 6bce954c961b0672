"""Which pages of other origins may ask, and what they may read."""

import pytest

PAGE = "https://page.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}
BODY = {"prompt": "Hi", "max_tokens": 1}


@pytest.fixture(scope="module")
def shared(start_server):
    return start_server(api_keys=("key",), cors_origins=(PAGE, "http://localhost:5173"))


def test_no_other_origin_may_ask_unless_it_was_named(served, shared):
    for server, headers in ((served, PREFLIGHT), (shared, PREFLIGHT | {"origin": "https://other.example"})):
        answer = server.http.options("/v1/completions", headers=headers)
        assert answer.status_code in (400, 405)
        assert "access-control-allow-origin" not in answer.headers
    answer = served.http.post("/v1/completions", json=BODY, headers={"origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_named_origin_is_told_without_a_key_that_it_may_ask(shared):
    answer = shared.http.options("/v1/completions", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["x-request-id"]


def test_asking_itself_needs_the_key_and_the_refusal_can_be_read(shared):
    refused = shared.http.post("/v1/completions", json=BODY, headers={"origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
    assert shared.http.options("/v1/completions").status_code == 401, "without an origin it is no preflight"
    headers = {"origin": PAGE, "authorization": "Bearer key"}
    answer = shared.http.post("/v1/completions", json=BODY | {"stream": True}, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "x-headrace-receipt", "x-headrace-stream", "x-ratelimit-remaining-tokens"} <= {*exposed}
    assert {name for name in answer.headers if name.startswith("x-")} - {"x-accel-buffering"} <= {*exposed}


def test_every_origin_may_ask_where_all_are_named(serve):
    answer = serve(cors_origins=("*",)).http.post("/v1/completions", json=BODY, headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == "*"
