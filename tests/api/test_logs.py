"""Log lines: one an event, as text or JSON, safe for terminals."""

import io
import json
import logging

import pytest

from server.logs import JsonLines, Log, TextLines


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
