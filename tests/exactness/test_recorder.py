"""What the file takes can be read again; what it does not take is counted and keeps nobody."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from server.exactness.recorder import Exchange, RecordedChoice, Recorder, read_exchanges


def exchange(id: str = "one") -> Exchange:
    choice = RecordedChoice(index=0, text="ü", token_ids=[1], logprobs=[-0.1], finish_reason="stop")
    return Exchange(
        id=id,
        path="/v1/completions",
        request={"prompt": "Hi", "seed": 2**62 - 1},
        receipt="",
        fingerprint="fp",
        prompts=[[7]],
        end="stop",
        choices=[choice],
        completion_tokens=2,
    )


def lost() -> tuple[list[None], Callable[[], None]]:
    losses: list[None] = []
    return losses, lambda: losses.append(None)


def test_what_is_recorded_is_read_again_and_belongs_to_its_owner(tmp_path: Path) -> None:
    path, (losses, on_loss) = tmp_path / "file.jsonl", lost()
    for id in ("one", "two"):
        with Recorder(path, on_loss) as recorder:
            recorder.take(exchange(id))
    assert list(read_exchanges(path)) == [exchange("one"), exchange("two")]
    assert path.stat().st_mode & 0o777 == 0o600
    assert not losses


def test_a_line_that_was_cut_off_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"id": "cut')
    with Recorder(path, lambda: None) as recorder:
        recorder.take(exchange())
    assert list(read_exchanges(path)) == [None, exchange()]


def test_a_full_disk_is_counted_each_time_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    losses, on_loss = lost()
    with caplog.at_level(logging.WARNING), Recorder(Path("/dev/full"), on_loss) as recorder:
        for _ in range(3):
            recorder.take(exchange())
    assert len(losses) == 3
    assert [record.message for record in caplog.records] == ["exchanges are not recorded"]


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Recorder(tmp_path / "missing" / "file.jsonl", lambda: None)
