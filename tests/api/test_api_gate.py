"""Who may ask, where, and what every answer carries: keys, paths, request ids, limits."""

import re
import socket
from collections.abc import Iterator

import pytest

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


def test_these_are_all_the_routes_and_what_each_needs(served, locked):
    def need(method: str, path: str) -> str:
        return {401: "key", 200: "nothing"}[locked.http.request(method, path).status_code]

    assert [(method, path, need(method, path)) for method, path in routes(served)] == [
        ("GET", "/docs", "nothing"),
        ("GET", "/health", "nothing"),
        ("GET", "/health/live", "nothing"),
        ("GET", "/health/ready", "nothing"),
        ("GET", "/health/startup", "nothing"),
        ("GET", "/metrics", "key"),
        ("GET", "/openapi.json", "key"),
        ("GET", "/tokenizer_info", "key"),
        ("GET", "/v1/capabilities", "key"),
        ("GET", "/v1/models", "key"),
        ("GET", "/v1/models/{model_id:path}", "key"),
        ("GET", "/v1/streams/{id}", "key"),
        ("GET", "/version", "key"),
        ("HEAD", "/openapi.json", "key"),
        ("POST", "/detokenize", "key"),
        ("POST", "/tokenize", "key"),
        ("POST", "/v1/chat/completions", "key"),
        ("POST", "/v1/completions", "key"),
        ("POST", "/v1/decisions", "key"),
        ("POST", "/v1/embeddings", "key"),
        ("POST", "/v1/load_lora_adapter", "key"),
        ("POST", "/v1/messages", "key"),
        ("POST", "/v1/messages/count_tokens", "key"),
        ("POST", "/v1/responses", "key"),
        ("POST", "/v1/unload_lora_adapter", "key"),
    ]


@pytest.mark.parametrize("path", ["/nowhere", "/docs/", "/redoc", "/v1", "/", "/health/", "/healthx", "/metrics/x"])
def test_what_is_no_route_asks_for_a_key_as_well(locked, path):
    assert locked.http.get(path).status_code == 401


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


def test_a_key_may_come_as_anthropics_clients_send_it(locked):
    assert locked.http.get("/v1/models", headers={"x-api-key": KEYS[0]}).status_code == 200
    for wrong in ("", "wrong", f"Bearer {KEYS[0]}"):
        assert locked.http.get("/v1/models", headers={"x-api-key": wrong}).status_code == 401


@pytest.mark.parametrize("first", ["authorization", "x-api-key"])
@pytest.mark.parametrize("second", ["authorization", "x-api-key"])
def test_a_right_key_beside_a_wrong_one_opens_nothing_unless_it_is_the_bearers(locked, first, second):
    prefixes = {"authorization": "Bearer ", "x-api-key": ""}
    headers = [(first, prefixes[first] + "wrong"), (second, prefixes[second] + KEYS[0])]
    is_open = (first, second) == ("x-api-key", "authorization")
    assert locked.http.get("/v1/models", headers=headers).status_code == (200 if is_open else 401)


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
    "path", ["/nowhere", "/v1/models/", "//v1/models", "/v1%2fmodels", "/docs/", "/v1/completions/"]
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
