"""What becomes of connections whose client is slow, silent, or does not speak HTTP."""

import json
import socket
from collections.abc import Iterator

import pytest

from server.protocol import MAX_HEAD_BYTES, Patience

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b'{"prompt": "Hi"}'


@pytest.fixture(scope="module")
def hasty(start_server):
    return start_server(patience=Patience(head_s=1.0, body_s=1.0), body_timeout_s=1.0)


@pytest.fixture
def connection(hasty) -> Iterator[socket.socket]:
    with hasty.connect() as connection:
        connection.settimeout(20)
        yield connection


def rest(connection: socket.socket) -> bytes:
    """All until the server closes."""
    received = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:  # it has closed without having read all
            return received
        if not part:
            return received
        received += part


def check_error(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert b"connection: close" in head.lower()
    assert b"x-request-id: req-" in head.lower()
    assert b"content-type: application/json" in head.lower()
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


@pytest.mark.parametrize("sent", [b"G", b"GET /health HT", HEAD, HEAD + b"X-Slow: "])
def test_a_head_that_does_not_end_is_408(connection, sent):
    connection.sendall(sent)
    check_error(rest(connection), 408, "slow_request")


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"])
def test_a_connection_on_which_nothing_is_asked_is_closed(connection, sent):
    connection.sendall(sent)
    assert rest(connection) == b""


@pytest.mark.parametrize("sent", [b"", BODY[:5]])
def test_a_body_that_does_not_end_is_408(connection, sent):
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + sent)
    check_error(rest(connection), 408, "slow_request")


def test_a_chunked_body_that_does_not_end_is_408(connection):
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + BODY[:5] + b"\r\n")
    check_error(rest(connection), 408, "slow_request")


def test_a_body_that_nobody_reads_and_that_does_not_end_is_no_way_to_stay(connection):
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


def test_empty_lines_after_an_answer_are_no_way_to_stay(connection):
    connection.sendall(GET)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    connection.sendall(b"\r\n")
    assert rest(connection) == b""


def test_a_slow_second_request_is_408_as_well(connection):
    connection.sendall(GET)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    connection.sendall(GET[:10])
    check_error(rest(connection), 408, "slow_request")


@pytest.mark.parametrize("early", [GET[:10], HEAD + b"Content-Length: 9\r\n\r\n"])
def test_who_waits_for_an_answer_is_not_hurried(start_server, early):
    served = start_server(patience=Patience(head_s=0.7, body_s=0.0), body_timeout_s=0.7)
    served.engine.is_held = True
    with served.send("/v1/completions", BODY) as connection:
        served.engine.wait_until(lambda: served.engine.orders)
        connection.sendall(early)  # the next request, asked too early and too slowly
        for _ in range(2):
            with served.connect() as other:
                assert rest(other) == b"", "a silent connection has been closed meanwhile"
        served.engine.say(0, "late", "length")
        answer = rest(connection)
    assert b"late" in answer
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_head_without_end_is_431_before_it_fills_the_memory(own_server):
    with own_server.connect() as connection:
        connection.sendall(HEAD + b"X-Long: ")
        sent = 0
        try:
            while sent < 64 * MAX_HEAD_BYTES:
                connection.sendall(b"x" * 65536)
                sent += 65536
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 64 * MAX_HEAD_BYTES


def test_a_head_a_little_too_long_is_told_so(own_server):
    with own_server.connect() as connection:
        connection.sendall(HEAD)
        for _ in range(3):  # each read on its own, or all at once and refused by the app
            connection.sendall(b"X-Long: " + b"x" * 30_000 + b"\r\n")
        connection.sendall(b"\r\n")
        answer = rest(connection)
    if answer:  # a reset connection may have lost it
        check_error(answer, 431, "headers_too_large")


TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
SHAPES = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 16\r\nContent-Length: 17\r\n\r\n" + BODY,
    "a list of lengths": b"Content-Length: 16, 17\r\n\r\n" + BODY,
    "a negative length": b"Content-Length: -1\r\n\r\n" + BODY,
    "a signed length": b"Content-Length: +16\r\n\r\n" + BODY,
    "a length in hex": b"Content-Length: 0x10\r\n\r\n" + BODY,
    "a length beyond 64 bits": b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "chunked and then not": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "something like chunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is none": b"Transfer-Encoding: chunked\r\n\r\nz\r\n\r\n",
    "a chunk longer than it says": b"Transfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "a bare line feed": b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a zero byte": b"X: a\x00b\r\n\r\n",
    "a folded header": b"X: a\r\n b: c\r\nContent-Length: \r\n 16\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_request_that_two_readers_may_read_differently_is_400_and_the_end(served, shape):
    with served.connect() as connection:
        connection.sendall(HEAD + SHAPES[shape] + SMUGGLED)
        answer = rest(connection)
    check_error(answer, 400, "invalid_http")
    assert b"smuggled" not in answer


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"HELO x\r\n", b"GET / HTTP/9.9\r\n\r\n"]
)
def test_what_is_no_http_is_400_and_the_end(served, sent):
    with served.connect() as connection:
        connection.sendall(sent)
        check_error(rest(connection), 400, "invalid_http")


def test_nonsense_after_a_request_does_not_stand_in_its_answer(own_server):
    own_server.engine.is_held = True
    with own_server.send("/v1/completions", b'{"prompt": "Hi", "stream": true}') as connection:
        own_server.engine.wait_until(lambda: own_server.engine.orders)
        own_server.engine.say(0, "some")
        assert b"some" in connection.recv(65536)
        connection.sendall(b"\x00nonsense\r\n\r\n")
        assert b"HTTP/1.1" not in rest(connection)
    own_server.engine.wait_until(lambda: own_server.engine.cancelled)
