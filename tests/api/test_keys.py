"""Which keys open, under what name and with what quota, and what becomes of a key file that changes."""

import hashlib
import os
from pathlib import Path

import pytest

from server import keys
from server.errors import Unauthorized
from server.keys import Keys, KeysError
from server.quotas import Quota

DEFAULT = Quota(requests=60)


@pytest.fixture(autouse=True)
def _always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_EVERY_S", 0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def write(file: Path, text: str) -> None:
    """As an administrator's tool would: whole or not at all."""
    fresh = file.with_name("fresh")
    fresh.write_text(text)
    os.replace(fresh, file)


def opens(keys: Keys, key: str) -> bool:
    try:
        keys.account_of(key.encode())
    except Unauthorized:
        return False
    return True


def test_a_file_has_keys_names_digests_quotas_and_comments(file: Path) -> None:
    digest = hashlib.sha256(b"third").hexdigest()
    write(
        file,
        f"""
        # who may ask
        first
        ada: second  requests=5 tokens=none  # the fast one
        grace:\tsha256:{digest.upper()} concurrency=2

        """,
    )
    given = Keys(["zeroth"], file, DEFAULT)
    found = {key: given.account_of(key.encode()) for key in ("zeroth", "first", "second", "third")}
    assert {key: account.name for key, account in found.items()} == {
        "zeroth": "key-1",
        "first": "key-2",
        "second": "ada",
        "third": "grace",
    }
    assert found["first"].quota == DEFAULT
    assert found["second"].quota == Quota(requests=5)
    assert found["third"].quota == Quota(requests=60, concurrency=2)
    for wrong in ("", "ada:", "ada", "#", digest, f"sha256:{digest}", "requests=5"):
        assert not opens(given, wrong)


def test_without_keys_everybody_may_ask_and_with_an_empty_file_nobody(file: Path) -> None:
    assert Keys().account_of(None).name is None
    write(file, "# none yet\n")
    locked = Keys(file=file)
    for key in (None, b"", b"x"):
        with pytest.raises(Unauthorized):
            locked.account_of(key)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ok\nada:", "line 2: expected 'key' or 'name: key'"),
        (": secret", "line 1: expected 'key' or 'name: key'"),
        ("a/b: secret", "line 1: expected 'key' or 'name: key'"),
        ("secret requests", "line 1: requests: expected a whole number"),
        ("secret other", "line 1: after the key, expected concurrency, requests, tokens"),
        ("secret requests=0", "line 1: requests: expected a whole number from 1, or 'none'"),
        ("secret tokens=-1", "line 1: tokens: expected"),
        ("secret tokens=" + "9" * 5000, "line 1"),
        ("secret\nsecret", "two keys like 'key-2'"),
        ("ada: secret\nada: other", "two keys like 'ada'"),
        ("\x00" * (keys.MAX_FILE_BYTES + 1), "larger than"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_has_no_key(file: Path, text: str, says: str) -> None:
    write(file, text)
    with pytest.raises(KeysError) as caught:
        Keys(file=file)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(file: Path) -> None:
    with pytest.raises(KeysError, match="No such file"):
        Keys(file=file)
    file.write_bytes(b"\xff")
    with pytest.raises(KeysError, match="UTF-8"):
        Keys(file=file)


def test_limits_without_keys_are_refused() -> None:
    with pytest.raises(KeysError, match="no keys"):
        Keys(quota=DEFAULT)


def test_a_changed_file_opens_and_closes_and_leaves_other_accounts_as_they_are(file: Path) -> None:
    write(file, "ada: one\ngrace: two requests=5\n")
    given = Keys(file=file)
    ada, grace = given.account_of(b"one"), given.account_of(b"two")
    write(file, "grace: two requests=6\nada: one\nalan: three\n")
    assert given.account_of(b"three").name == "alan"
    assert given.account_of(b"one") is ada
    assert given.account_of(b"two") is not grace
    write(file, "alan: three\n")
    assert [opens(given, key) for key in ("one", "two", "three")] == [False, False, True]


def test_a_changed_file_that_is_wrong_or_gone_changes_nothing_and_is_told_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(file, "ada: one\n")
    given = Keys(file=file)
    write(file, "ada: one requests=many secret\n")
    assert opens(given, "one")
    assert opens(given, "one")
    file.unlink()
    assert opens(given, "one")
    assert opens(given, "one")
    assert len([record for record in caplog.records if "stay as they were" in record.message]) == 2
    assert "secret" not in caplog.text
    write(file, "grace: two\n")
    assert opens(given, "two")
    assert not opens(given, "one")
