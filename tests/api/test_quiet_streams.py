"""Comments that keep a quiet stream's connection alive, and answers that take too long."""

import json
import socket

import pytest

STREAM = b'{"prompt": "Hi", "stream": true}'
COMMENT = b": keep-alive\n\n"


def read_until(connection: socket.socket, wanted: bytes, count: int = 1) -> bytes:
    received = b""
    while received.count(wanted) < count:
        part = connection.recv(65536)
        assert part, f"closed after {received!r}"
        received += part
    return received


@pytest.fixture
def quiet(serve):
    served = serve(sse_keepalive_s=0.05)
    served.engine.is_held = True
    return served


def begin(served, path: str = "/v1/completions", body: bytes = STREAM, *headers: str) -> socket.socket:
    connection = served.send(path, body, *headers)
    served.engine.wait_until(lambda: served.engine.orders)
    return connection


def test_a_quiet_stream_gets_comments_between_its_events(quiet):
    with begin(quiet) as connection:
        quiet.engine.say(0, "one")
        received = read_until(connection, COMMENT, 3)
        quiet.engine.say(0, "two", "length")
        received += read_until(connection, b"0\r\n\r\n")
    assert received.index(b"one") < received.index(COMMENT) < received.index(b"two") < received.index(b"[DONE]")
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_before_the_first_event_there_are_none_so_that_errors_are_plain(quiet):
    with begin(quiet) as connection:
        with begin(quiet) as other:
            quiet.engine.wait_until(lambda: quiet.engine.orders[1:])
            quiet.engine.say(1, "some")
            read_until(other, COMMENT, 3)
        quiet.engine.say(0, "", "error", "it broke")
        assert read_until(connection, b"it broke").startswith(b"HTTP/1.1 500")


def test_an_answer_that_is_no_stream_gets_none(quiet):
    with begin(quiet, body=b'{"prompt": "Hi"}') as connection:
        with begin(quiet) as other:
            quiet.engine.wait_until(lambda: quiet.engine.orders[1:])
            quiet.engine.say(1, "some")
            read_until(other, COMMENT, 3)
        quiet.engine.say(0, "whole", "length")
        assert COMMENT not in read_until(connection, b"whole")


def test_comments_are_no_events_of_a_resumable_stream(quiet):
    with begin(quiet, "/v1/completions", STREAM, "x-headrace-resumable: true") as connection:
        quiet.engine.say(0, "one")
        received = read_until(connection, COMMENT, 3)
        quiet.engine.say(0, "two", "length")
        received += read_until(connection, b"[DONE]")
    assert b"\n: keep" not in received.replace(b"\n\n: keep", b"").replace(b"\r\n: keep", b"")
    stream = received.split(b"x-headrace-stream: ")[1][:32].decode()
    again = quiet.http.get(f"/v1/streams/{stream}")
    assert ": keep-alive" not in again.text
    assert [line for line in again.text.splitlines() if line.startswith("id: ")] == [
        f"id: {stream}:{number}" for number in range(1, again.text.count("data: ") + 1)
    ]


def test_a_client_that_leaves_a_quiet_stream_cancels_it(quiet):
    with begin(quiet) as connection:
        quiet.engine.say(0, "one")
        read_until(connection, COMMENT, 2)
    quiet.engine.wait_until(lambda: quiet.engine.cancelled)


def timed(serve, seconds: float):
    served = serve(request_timeout_s=seconds)
    served.http.get("/v1/models")  # loads the text tools
    served.engine.is_held = True
    return served


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_does_not_begin_in_time_is_504(serve, stream):
    served = timed(serve, 0.3)
    answer = served.http.post("/v1/completions", json={"prompt": "Hi", "stream": stream})
    assert answer.status_code == 504
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "request_timeout", None)
    served.engine.wait_until(lambda: len(served.engine.cancelled) == len(served.engine.orders))


def test_a_stream_that_does_not_end_in_time_says_so_and_has_no_end(serve):
    served = timed(serve, 2.0)  # enough for one event
    with begin(served) as connection:
        served.engine.say(0, "some")
        received = read_until(connection, b"request_timeout")
        while part := connection.recv(65536):
            received += part
    assert b"some" in received
    assert b"[DONE]" not in received
    assert not received.endswith(b"0\r\n\r\n")
    last = received.split(b"data: ")[-1].split(b"\n\n")[0]
    assert json.loads(last)["error"]["code"] == "request_timeout"
    served.engine.wait_until(lambda: served.engine.cancelled)
