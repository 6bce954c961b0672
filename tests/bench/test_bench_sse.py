"""The event parser finds the same events wherever the network cuts the stream."""

import pytest

from server.bench.sse import Event, EventParser

STREAM = (
    b"\xef\xbb\xbfdata: first\n\n"
    b": a comment\r\n\r\n"
    b"event: error\r\ndata: two\r\ndata:  lines\r\n\r\n"
    b"id: 7\rdata:third\r\r"
    b"retry: 10\n\n"
    b"data\n\n"
    b"data: \xc3\xa9\n\n"
    b"data: never closed\n"
)
EVENTS = [
    Event(b"message", b"first"),
    Event(b"error", b"two\n lines"),
    Event(b"message", b"third"),
    Event(b"message", b""),
    Event(b"message", b"\xc3\xa9"),
]


def parse(*parts: bytes) -> list[Event]:
    parser = EventParser()
    return [event for part in parts for event in parser.feed(part)]


def test_a_whole_stream_gives_its_events_and_drops_what_was_not_closed() -> None:
    assert parse(STREAM) == EVENTS


@pytest.mark.parametrize("at", range(len(STREAM) + 1))
def test_a_cut_at_any_byte_changes_nothing(at: int) -> None:
    assert parse(STREAM[:at], STREAM[at:]) == EVENTS


def test_single_bytes_and_empty_reads_change_nothing() -> None:
    parts = [part for at in range(len(STREAM)) for part in (STREAM[at : at + 1], b"")]
    assert parse(*parts) == EVENTS


def test_an_event_comes_with_the_byte_that_closes_it() -> None:
    parser = EventParser()
    assert parser.feed(b"data: x\n") == []
    assert parser.feed(b"\n") == [Event(b"message", b"x")]


def test_an_event_name_does_not_leak_into_the_next_event() -> None:
    assert parse(b"event: error\n\ndata: x\n\n") == [Event(b"message", b"x")]
