"""Bad input over raw sockets to a real server, beside honest streams that must stay the same to the last bit."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import bad_input
import honest
import httpx
import pytest
from bad_input import ASKED, KEY, SERVING, Row
from bytes_model import write_bytes_model
from soak import mutations, negative
from support import RunningServer, running_server, wait_until

OPTIONS = (*mutations.SERVER, "--served-model-name", "bytes")
LONG = 2**15  # tokens, of which one sequence takes its time


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bytes_model(tmp_path_factory.mktemp("models") / "bytes")


@pytest.fixture(scope="module")
def server(bytes_model: Path) -> Iterator[RunningServer]:
    with running_server("--model", str(bytes_model), *OPTIONS, "--max-body", str(bad_input.MAX_BODY)) as server:
        yield server


def faults(port: int, rows: list[Row]) -> list[str]:
    """One line for each row that is answered otherwise."""
    found = []
    for row in rows:
        try:
            bad_input.check(row, bad_input.ask(port, bad_input.request_of(row)))
        except (AssertionError, OSError) as error:
            found.append(f"row {row['row']}, {str(row)[:200]}: {error!r}")
    return found


def test_every_row_is_refused_beside_honest_streams(server: RunningServer) -> None:
    engine, alone = server.engine, honest.alone(server.url, KEY)
    found: list[str] = []
    told = honest.beside(server.url, lambda: found.extend(faults(server.port, SERVING)), KEY)
    assert found == []
    assert all(each == alone for each in told)
    assert mutations.check_server(server, engine) == []


def test_mutated_requests_are_answered_beside_honest_streams(server: RunningServer) -> None:
    outcome = mutations.soak(server, 500)
    assert outcome.faults == []
    assert outcome.statuses["400"] > 100
    assert outcome.statuses["200"] > 10


def test_requests_that_the_servers_own_document_forbids_are_refused(server: RunningServer) -> None:
    outcome = negative.soak(server, 6)
    assert outcome.faults == []
    assert all(outcome.examples[operation] for operation in ("POST /v1/chat/completions", "POST /v1/messages"))


def test_the_soaks_would_notice(server: RunningServer) -> None:
    """A server that answers all with one fault, whatever it is asked."""
    for answer in (
        b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: text/plain\r\n\r\nInternal Server Error",
        b'HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n\r\n{"detail":"no"}',
        b"",
    ):
        outcome = mutations.Outcome()
        with answering(answer) as port:
            mutations.send(port, 8, outcome)
        assert outcome.faults
    outcome = negative.Outcome()
    with answering(b"HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\ncontent-length: 0\r\n\r\n") as port:
        negative.ask(negative.operations(server.url)[0], f"http://127.0.0.1:{port}", 3, 0, outcome)
    assert len(outcome.faults) == outcome.examples.total()


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """The port of a server that knows one answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:

        def answer_all() -> None:
            while connection := accepted(listening):
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=answer_all)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def accepted(listening: socket.socket) -> socket.socket | None:
    with contextlib.suppress(OSError):  # it listens no more
        return listening.accept()[0]
    return None


def rows_for(state: str) -> list[Row]:
    rows = [row for row in ASKED if row.get("server") == state]
    assert rows
    return rows


def test_what_can_never_fit_the_cache_is_refused_at_once(bytes_model: Path) -> None:
    with running_server("--model", str(bytes_model), *OPTIONS, "--kv-memory", "0.00004") as small:
        assert faults(small.port, rows_for("small")) == []


def test_a_full_and_then_a_draining_server_say_when_to_come_back(tmp_path: Path) -> None:
    model = write_bytes_model(tmp_path / "bytes", LONG)
    with running_server("--model", str(model), *OPTIONS, "--max-sequences", "1", "--max-queue", "1") as server:
        with occupied(server):
            assert faults(server.port, rows_for("full")) == []
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503)
            assert faults(server.port, rows_for("draining")) == []
        assert server.process.wait(60) == 0


@contextlib.contextmanager
def occupied(server: RunningServer) -> Iterator[None]:
    """While one request's choices fill the batch and the queue."""
    body = {"prompt": "a", "n": 2, "max_tokens": LONG - 9, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=60) as answer:
        events = answer.iter_bytes()  # whose end would end the request
        next(events)
        yield
