"""The client measures what a server sends, names what goes wrong, and reuses its connections."""

import json
import time
from collections.abc import Iterator

import pytest

from server.bench.answer import Answer, error_message
from server.bench.client import Client, ServerError
from server.bench.connection import Address
from server.bench.probe import probe
from server.bench.record import Record, Request, Usage
from server.bench.sse import Event


def completion(tokens: int = 4, path: str = "/v1/completions") -> Request:
    prompt = {"messages": [{"role": "user", "content": "a b"}]} if "chat" in path else {"prompt": [1, 2, 3]}
    body = {**prompt, "stream": True, "max_tokens": tokens}
    return Request(path, json.dumps(body).encode(), tokens)


@pytest.fixture
def client(fake) -> Iterator[Client]:
    client = Client(Address.parse(fake.url), timeout_s=20)
    yield client
    client.close()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_an_answer_is_recorded_chunk_by_chunk_with_the_servers_usage(fake, client, path) -> None:
    fake.delay_s = 0.05
    begin = time.monotonic()
    record = await client.stream(completion(4, path))
    assert record.failure is None
    assert len(record.chunks) == 4  # a chat's first chunk has a role and no text
    assert record.usage == Usage(prompt=3 if path == "/v1/completions" else 11, output=4, cached=3)
    assert record.ttft >= 0.05
    assert begin <= record.start <= record.chunks[0] <= record.end <= time.monotonic()
    assert record.chunks == sorted(record.chunks)


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        ("503", "http 503", "queue is full"),
        ("cut", "cut", ""),
        ("sse error", "sse error", "engine died"),
        ("not http", "not http", ""),
    ],
)
async def test_failures_are_named_by_kind(fake, client, mode, kind, message) -> None:
    fake.mode = mode
    record = await client.stream(completion())
    assert record.failure is not None
    assert record.failure.kind == kind
    assert message in record.failure.message
    fake.mode = "good"
    assert (await client.stream(completion())).failure is None  # and the next request is not harmed


async def test_nobody_listening_is_a_refused_connection(fake) -> None:
    client = Client(Address.parse("http://127.0.0.1:1"), timeout_s=20)
    record = await client.stream(completion())
    assert record.failure is not None
    assert record.failure.kind == "refused"


async def test_a_silent_server_is_a_timeout_and_its_connection_is_given_up(fake) -> None:
    fake.silent_after = 0
    client = Client(Address.parse(fake.url), timeout_s=0.05)
    record = await client.stream(completion())
    assert record.failure is not None
    assert record.failure.kind == "timeout"
    fake.silent_after = None
    await client.stream(completion())
    assert fake.connections == 2
    client.close()


async def test_connections_are_reused(fake, client) -> None:
    for _ in range(5):
        assert (await client.stream(completion())).failure is None
    assert fake.connections == 1


async def test_a_server_that_closes_after_each_answer_costs_no_request(fake, client) -> None:
    fake.mode = "hangs up"
    records = [await client.stream(completion()) for _ in range(5)]
    assert [record.failure for record in records] == [None] * 5
    assert fake.connections == 5


async def test_the_key_goes_to_the_server_as_a_bearer_token(fake) -> None:
    client = Client(Address.parse(fake.url, "secret"), timeout_s=20)
    await client.stream(completion())
    assert "\r\nAuthorization: Bearer secret\r\n" in fake.headers[0]
    client.close()


async def test_without_usage_the_record_has_none(fake, client) -> None:
    fake.mode = "no usage"
    record = await client.stream(completion())
    assert (record.failure, record.usage, record.output_tokens) == (None, None, 4)


def feed(*data: str, name: bytes = b"message") -> Record:
    record = Record(start=0.0, asked_tokens=1)
    answer = Answer(record)
    for time_s, text in enumerate(data, start=1):
        answer.take(Event(name, text.encode()), float(time_s))
    answer.close()
    return record


def test_only_text_makes_a_chunk() -> None:
    record = feed(
        '{"choices": [{"index": 0, "text": ""}]}',
        '{"choices": [{"index": 0, "text": "a", "finish_reason": null}]}',
        '{"choices": [{"index": 0, "delta": {"reasoning_content": "b"}}]}',
        '{"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}',
        '{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}',
        "[DONE]",
    )
    assert (record.failure, record.chunks, record.finish) == (None, [2.0, 3.0], 4.0)
    assert record.usage == Usage(3, 2, None)


def test_a_finish_reason_ends_an_answer_of_a_server_that_never_says_done() -> None:
    record = feed('{"choices": [{"text": "a"}]}', '{"choices": [{"text": "", "finish_reason": "length"}]}')
    assert (record.failure, record.end) == (None, 2.0)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (['{"choices": [{"text": "a"}]}'], "cut"),
        (["[DONE]"], "empty"),
        (["{", "[DONE]"], "bad chunk"),
        (['{"choices": 3}', "[DONE]"], "bad chunk"),
        (['{"error": "overloaded"}', "[DONE]"], "sse error"),
        (['{"error": {"message": "overloaded"}}'], "sse error"),
    ],
)
def test_a_stream_that_is_no_answer_is_a_failure(data: list[str], kind: str) -> None:
    failure = feed(*data).failure
    assert failure is not None
    assert failure.kind == kind


def test_an_event_named_error_is_a_failure_whatever_it_holds() -> None:
    failure = feed('{"message": "gone"}', name=b"error").failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("sse error", "gone")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "a"}}', "a"),
        (b'{"error": "b"}', "b"),
        (b'{"object": "error", "message": "c"}', "c"),
        (b'{"detail": "d"}', "d"),
        (b"<html>", "<html>"),
        (b"\xff", "\ufffd"),
        (b"[1]", "[1]"),
        (b"x" * 900, "x" * 200),
    ],
)
def test_error_bodies_of_every_shape_are_read(body: bytes, message: str) -> None:
    assert error_message(body) == message


@pytest.mark.parametrize(
    ("url", "host", "port", "root"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, ""),
        ("http://127.0.0.1:8000/v1/", "127.0.0.1", 8000, ""),
        ("https://example.org/gateway/v1", "example.org", 443, "/gateway"),
        ("http://[::1]:80", "::1", 80, ""),
    ],
)
def test_addresses_are_read_with_and_without_v1(url: str, host: str, port: int, root: str) -> None:
    address = Address.parse(url)
    assert (address.host, address.port, address.root) == (host, port, root)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x", "http://", "http://u:p@x", "http://x?y", "http://x:y"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Address.parse(url)


def test_a_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(ValueError, match="API key"):
        Address.parse("http://x", "a\r\nHost: b")


async def test_a_server_is_asked_for_its_model_and_for_ids_that_are_valid(client) -> None:
    target = await probe(client, None, "completions", "auto")
    assert target.model == "fake-model"
    assert set(target.material.ids) >= set(map(ord, "abcxyzABCXYZ"))
    assert max(target.material.ids) < 128  # the fake's ids are characters: nothing was made up


async def test_words_are_measured_by_usage(fake, client) -> None:
    fake.has_tokenize = False
    for endpoint in ("completions", "chat"):
        material = (await probe(client, "m", endpoint, "auto")).material
        assert (material.is_text, material.tokens_per_word, material.overhead) == (True, 2.0, 7.0)


async def test_ids_that_nobody_gives_are_an_error_that_names_the_way_out(fake, client) -> None:
    fake.has_tokenize = False
    with pytest.raises(ServerError, match="--prompt-kind words"):
        await probe(client, None, "completions", "ids")
