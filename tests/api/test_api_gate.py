"""Who may ask, where, and what every answer carries: keys, paths, request ids, limits."""

import re
import socket
from collections.abc import Iterator

import pytest

from server.api.middleware import HEALTH_PATHS

KEYS = ("first-key-0123456789abcdef", "zweiter-schlüssel")
OWN_ID = re.compile(r"req-[0-9a-f]{32}")


@pytest.fixture(scope="module")
def locked(start_server):
    return start_server(api_keys=KEYS)


def routes(served) -> list[tuple[str, str]]:
    """Every method and path; what is no plain route has the method "?"."""

    def walk(routes: list) -> Iterator[tuple[str, str]]:
        for route in routes:
            if included := getattr(route, "original_router", None):
                yield from walk(included.routes)
            else:
                yield from ((method, route.path) for method in getattr(route, "methods", "?"))

    return sorted(walk(served.app.routes))


def raw(served, request: bytes) -> bytes:
    with served.connect() as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_these_are_all_the_routes(served):
    assert routes(served) == [
        ("GET", "/health"),
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/health/startup"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model_id:path}"),
        ("GET", "/v1/streams/{id}"),
        ("HEAD", "/openapi.json"),
        ("POST", "/detokenize"),
        ("POST", "/tokenize"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/responses"),
    ]


def test_every_route_but_health_asks_for_a_key(locked):
    for method, path in [*routes(locked), ("GET", "/nowhere"), ("GET", "/docs")]:
        status = locked.http.request(method, path).status_code
        assert (status == 200) if path in HEALTH_PATHS else (status == 401), path


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {KEYS[0]}",
        KEYS[0],
        f"Bearer {KEYS[0]}x",
        f"Bearer {KEYS[0][:-1]}",
        "Bearer \xff\xfe",
        "Bearer " + "k" * 30000,
    ],
)
def test_a_wrong_key_is_refused_without_being_repeated(locked, header):
    answer = locked.http.get("/v1/models", headers=[(b"authorization", header.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert KEYS[0][:8] not in answer.text


def test_an_empty_key_is_refused(locked):
    answer = raw(locked, b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_each_key_opens(locked, key, scheme):
    answer = locked.http.get("/v1/models", headers=[(b"authorization", f"{scheme} {key}".encode())])
    assert answer.status_code == 200


def test_two_keys_in_one_request_open_nothing(locked):
    twice = [("authorization", "Bearer wrong"), ("authorization", f"Bearer {KEYS[0]}")]
    assert locked.http.get("/v1/models", headers=twice).status_code == 401


@pytest.mark.parametrize("host", ["a/health?", "/health", "x/health#", "health", "", "a\\health", "@/health/live"])
def test_no_host_header_talks_the_key_away(locked, host):
    answer = raw(locked, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400"))


@pytest.mark.parametrize(
    "path", ["/v1%2fmodels", "/health/../v1/models", "//v1/models", "/v1/models/", "/health%2flive"]
)
def test_no_spelling_of_a_path_gets_around_the_key(locked, path):
    answer = raw(locked, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401") or (b"/health" in path.encode() and b"404" in answer.split(b"\r\n")[0])


def test_metrics_can_be_opened_to_everybody(serve):
    served = serve(api_keys=KEYS, open_metrics=True)
    assert served.http.get("/metrics").status_code == 200
    assert served.http.get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1/models/", "//v1/models", "/v1%2fmodels", "/docs", "/v1/completions/"]
)
def test_an_unknown_path_is_404_and_never_a_redirect(served, path):
    answer = raw(served, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert b'"code":"unknown_url"' in answer


def test_a_wrong_method_is_told_the_right_one(served):
    answer = served.http.get("/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert served.http.post("/v1/models").headers["allow"] == "GET"


@pytest.mark.parametrize("offered", ["abc-DEF_1.2", "x" * 128])
def test_a_well_formed_request_id_is_kept(served, offered):
    assert served.http.get("/health", headers={"x-request-id": offered}).headers["x-request-id"] == offered


@pytest.mark.parametrize("offered", ["", "x" * 129, "a b", "a\tb", "é", "a;b", "x" * 10000])
def test_any_other_request_id_is_replaced(served, offered):
    answer = served.http.get("/health", headers=[(b"x-request-id", offered.encode())])
    assert OWN_ID.fullmatch(answer.headers["x-request-id"])


def test_an_id_that_is_in_use_is_replaced(own_server):
    own_server.engine.is_held = True
    with own_server.send("/v1/completions", b'{"prompt": "Hi"}', "X-Request-Id: mine"):
        own_server.engine.wait_until(lambda: own_server.engine.orders)
        answer = own_server.http.get("/health", headers={"x-request-id": "mine"})
        assert OWN_ID.fullmatch(answer.headers["x-request-id"])
    own_server.engine.wait_until(lambda: own_server.engine.cancelled)


@pytest.mark.parametrize("headers", [{"x": "y" * 33000}, {f"x-{i}": "y" for i in range(101)}])
def test_too_many_headers_are_refused(served, headers):
    answer = served.http.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
    assert answer.headers["connection"] == "close"


def test_a_fault_of_ours_is_a_500_that_tells_nothing_of_its_insides(own_server, monkeypatch, caplog):
    async def fail(*_: object, **__: object) -> list[int]:
        raise RuntimeError("secret at /root/x 0x7f0011223344")

    own_server.http.get("/v1/models")
    monkeypatch.setattr(own_server.app.state.service._model.tools.prompts, "text", fail)
    answer = own_server.http.post("/v1/completions", json={"prompt": "Hi"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "secret" not in answer.text
    assert "secret" in caplog.text, "the log has what the client must not see"
    assert answer.headers["x-request-id"]
    assert own_server.http.post("/tokenize", json={"prompt": "Hi"}).status_code == 200
