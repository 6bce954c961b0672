"""Log lines: one an event, as text or JSON, safe for terminals."""

import io
import json
import logging
import os

import pytest

from server.logs import MAX_WAITING, JsonLines, LineWriter, Log, TextLines


@pytest.fixture(params=[TextLines, JsonLines])
def lines(request: pytest.FixtureRequest):
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(request.param())
    logger = logging.getLogger("test.logs")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield lambda: out.getvalue().splitlines()
    logger.removeHandler(handler)


HOSTILE = 'a\nb\r\x1b[31m "quoted" \u2028 \\ x=y'


def test_an_event_is_one_line_whatever_its_values_hold(lines):
    log = Log("test.logs")
    log.info("request", path=HOSTILE, status=200)
    log.info(HOSTILE)
    log.debug("below the level")
    assert len(lines()) == 2
    assert all(line.isprintable() for line in lines())


def test_an_exception_is_logged_on_the_same_line(lines):
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError:
        Log("test.logs").error("failed", request_id="x")
    (line,) = lines()
    assert line.isprintable()
    assert "RuntimeError" in line


def test_json_lines_hold_the_values_unchanged():
    record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": "event", "values": {"path": HOSTILE}})
    fields = json.loads(JsonLines().format(record))
    assert (fields["event"], fields["path"], fields["level"]) == ("event", HOSTILE, "info")


def test_text_lines_read_as_key_and_value():
    record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": "took %d", "args": (3,), "values": {}})
    assert TextLines().format(record).endswith("info    n: took 3")
    record.values = {"status": 200, "path": "/a b", "empty": ""}
    assert TextLines().format(record).endswith('took 3 status=200 path="/a b" empty=""')


@pytest.fixture
def pipe():
    """A log whose lines go into a pipe."""
    reading, writing = os.pipe()
    handler = LineWriter(writing)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("test.pipe")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield os.fdopen(reading, "rb"), handler
    logger.removeHandler(handler)
    os.close(writing)


def test_a_reader_that_stalls_costs_lines_and_no_time_and_is_told_how_many(pipe):
    reader, _ = pipe
    said = MAX_WAITING + 5_000  # a pipe holds some hundreds more
    for number in range(said):
        Log("test.pipe").info("event", number=number)
    numbers, lost = [], 0
    with reader:
        while len(numbers) + lost < said:
            line = json.loads(reader.readline())
            if "number" in line:
                numbers.append(line["number"])
            else:
                lost += line["lines"]
    assert numbers == sorted(set(numbers))
    assert 0 < lost < 5_000


def test_a_reader_that_has_left_stops_nobody(pipe, capfd):
    reader, handler = pipe
    reader.close()
    for number in range(100):
        Log("test.pipe").info("event", number=number)
    handler.flush()
    assert capfd.readouterr() == ("", "")
