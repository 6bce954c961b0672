"""Clients that leave: over raw sockets, streaming or not, queued, in prefill or decoding."""

import asyncio
import json
import socket
import struct
from concurrent.futures import Future

import pytest

DISCONNECTS = "headrace_client_disconnects_total"
PATHS = {
    "/v1/completions": {"prompt": "Hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
}


def leave_by_reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


LEAVING = {
    "close": socket.socket.close,
    "half-close": lambda connection: connection.shutdown(socket.SHUT_WR),
    "reset": leave_by_reset,
}


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        received = connection.recv(65536)
        assert received, f"closed before {mark!r}: {seen!r}"
        seen += received
    return seen


@pytest.fixture(scope="module")
def module_server(start_server):
    return start_server()


@pytest.fixture
def talking(module_server):
    module_server.start_anew()
    module_server.engine.is_held = False
    return module_server


@pytest.fixture
def held(talking):
    """Its engine says nothing by itself."""
    talking.engine.is_held = True
    return talking


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("how", LEAVING)
def test_a_client_that_leaves_before_the_first_token_is_cancelled_once(held, path, is_streamed, how):
    body = json.dumps(PATHS[path] | {"stream": is_streamed}).encode()
    connection = held.send(path, body)
    held.engine.wait_until(lambda: held.engine.orders)
    LEAVING[how](connection)
    held.wait_for(DISCONNECTS, 1)
    connection.close()
    assert held.engine.cancelled == [0]
    assert held.gained('headrace_requests_finished_total{reason="disconnect"}') == 1
    assert held.gained("headrace_requests_accepted_total") == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_while_tokens_come_is_cancelled_once(held, path, is_streamed):
    connection = held.send(path, json.dumps(PATHS[path] | {"stream": is_streamed}).encode())
    held.engine.wait_until(lambda: held.engine.orders)
    held.engine.say(0, "some text")
    if is_streamed:
        read_until(connection, b"some text")
    connection.close()
    held.wait_for(DISCONNECTS, 1)
    assert held.engine.cancelled == [0]
    assert held.gained('headrace_requests_finished_total{reason="disconnect"}') == 1


def test_only_the_choices_that_still_run_are_cancelled(held):
    connection = held.send("/v1/completions", b'{"prompt": "Hi", "n": 3, "stream": true}')
    held.engine.wait_until(lambda: len(held.engine.orders) == 3)
    held.engine.say(1, "done", finish="length")
    read_until(connection, b'"finish_reason":"length"')
    connection.close()
    held.wait_for(DISCONNECTS, 1)
    assert sorted(held.engine.cancelled) == [0, 2]


def test_a_finished_request_is_not_cancelled_when_its_client_leaves(talking):
    with talking.send("/v1/completions", b'{"prompt": "Hi", "stream": true}') as connection:
        read_until(connection, b"[DONE]")
    assert talking.http.post("/v1/completions", json={"prompt": "Hi"}).status_code == 200
    assert talking.engine.cancelled == []
    assert talking.gained(DISCONNECTS) == 0
    assert talking.gained('headrace_requests_finished_total{reason="length"}') == 0
    assert talking.gained('headrace_requests_finished_total{reason="stop"}') == 2


def test_a_client_that_leaves_in_the_middle_of_its_body_is_counted_and_submits_nothing(talking):
    connection = talking.connect()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    connection.sendall(head.encode())
    connection.close()
    talking.wait_for(DISCONNECTS, 1)
    assert talking.engine.orders == []
    assert talking.gained("headrace_requests_accepted_total") == 0


def test_a_connection_serves_one_request_after_another(served):
    with served.connect() as connection:
        for _ in range(3):
            body = b'{"prompt": "Hi", "max_tokens": 5}'
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert b"200 OK" in read_until(connection, b"completion_tokens_details")


def test_a_fault_before_the_first_token_is_a_plain_error_even_for_a_stream(held):
    with held.send("/v1/completions", b'{"prompt": "Hi", "stream": true}') as connection:
        held.engine.wait_until(lambda: held.engine.orders)
        held.engine.say(0, "", finish="error", error="the row was not finite")
        answer = read_until(connection, b"}}")
    assert answer.startswith(b"HTTP/1.1 500")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"].endswith("the row was not finite.")
    assert held.gained('headrace_requests_finished_total{reason="error"}') == 1
    assert held.gained('headrace_requests_rejected_total{reason="internal_error"}') == 0


def test_a_fault_in_a_stream_is_an_event_after_which_the_connection_closes_unfinished(held):
    with held.send("/v1/completions", b'{"prompt": "Hi", "stream": true}') as connection:
        held.engine.wait_until(lambda: held.engine.orders)
        held.engine.say(0, "half")
        seen = read_until(connection, b"half")
        held.engine.say(0, "", finish="error", error="the row was not finite")
        seen += b"".join(iter(lambda: connection.recv(65536), b""))
    assert b'data: {"error":{"message":"The server failed on this request: the row was not finite."' in seen
    assert b"[DONE]" not in seen
    assert not seen.endswith(b"0\r\n\r\n"), "HTTP must see that the body is incomplete"


def test_what_is_ready_in_one_step_is_sent_as_one_body_chunk(held):
    with held.send("/v1/completions", b'{"prompt": "Hi", "n": 4, "stream": true}') as connection:
        held.engine.wait_until(lambda: len(held.engine.orders) == 4)

        def step() -> None:
            for place in range(4):
                held.engine.put(place, f"choice {place}")

        held.engine.loop.call_soon_threadsafe(step)
        seen = read_until(connection, b"choice 3")
    head, _, body = seen.partition(b"\r\n\r\n")
    assert b"text/event-stream" in head
    size, _, rest = body.partition(b"\r\n")
    assert rest[: int(size, 16)].count(b"data: ") == 4
    held.wait_for(DISCONNECTS, 1)  # the next test counts from there


def test_a_client_that_leaves_while_its_prompt_is_read_stops_the_reading(talking, monkeypatch):
    reading, stopped = Future(), Future()

    async def read_for_ever(prompt: str, suffix: str | None) -> list[int]:
        reading.set_result(prompt)
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set_result(True)

    talking.http.get("/v1/models")  # loads the text tools
    monkeypatch.setattr(talking.app.state.service._model.tools.prompts, "text", read_for_ever)
    connection = talking.send("/v1/completions", b'{"prompt": "Hi"}')
    assert reading.result(5) == "Hi"
    connection.close()
    assert stopped.result(5)
    talking.wait_for(DISCONNECTS, 1)
    assert talking.engine.orders == []
