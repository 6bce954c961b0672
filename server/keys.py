"""Who may ask: the keys that clients send, and the accounts that they stand for.

A key file has one key a line, as `key` or `name: key`, where `sha256:HEX` may stand for the key. What follows overrides
the quota of the options, as in `concurrency=2 requests=60 tokens=none`. A word that begins with # begins a comment.
The file is read again when it changes, within a second of the next request.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path

from server.errors import Unauthorized
from server.logs import Log
from server.quotas import UNLIMITED, Account, Quota

LOOK_EVERY_S = 1.0
MAX_FILE_BYTES = 2**20

_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NAME = re.compile(r"[\w.@-]{1,64}")
_SETTINGS = frozenset(field.name for field in fields(Quota))

log = Log(__name__)


class KeysError(ValueError):
    """The keys cannot be used as they are given; the message is one line and repeats none."""


class Keys:
    """Every account, by the digest of its key. No key is kept."""

    def __init__(self, keys: Iterable[str] = (), file: Path | None = None, quota: Quota = UNLIMITED) -> None:
        """Without keys and a file, everybody may ask. `quota` is each key's. Raises KeysError."""
        self._quota = quota
        self._given = [(None, _digest(key.encode()), quota) for key in keys]
        self._file = file
        self._everybody = Account(None, UNLIMITED)
        self._stamp: tuple[int, ...] | None = None
        self._next_look = 0.0
        self._accounts: dict[bytes, Account] = {}
        if not self.are_needed and quota != UNLIMITED:
            raise KeysError("limits are for each key, and there are no keys: see --api-key and --api-key-file")
        self._read()

    @property
    def are_needed(self) -> bool:
        """An empty file lets nobody in."""
        return bool(self._given) or self._file is not None

    def account_of(self, key: bytes | None) -> Account:
        """Takes as long whichever key is offered. Raises Unauthorized."""
        if not self.are_needed:
            return self._everybody
        self._look_again()
        offered = _digest(key or b"")
        found = [account for digest, account in self._accounts.items() if secrets.compare_digest(offered, digest)]
        if not key or not found:
            raise Unauthorized
        return found[0]

    def _look_again(self) -> None:
        if self._file is None or time.monotonic() < self._next_look:
            return
        stamp = self._stamp
        try:
            self._read()
        except KeysError as error:  # half written, perhaps; a typing error must not lock everybody out
            if self._stamp != stamp:
                log.warning("the keys stay as they were", reason=error)

    def _read(self) -> None:
        """An account whose name and quota are as they were goes on; any other starts afresh."""
        self._next_look = time.monotonic() + LOOK_EVERY_S
        listed = [] if self._file is None else self._changed_lines(self._file)
        if listed is None:
            return
        accounts: dict[bytes, Account] = {}
        names: set[str] = set()
        for place, (name, digest, quota) in enumerate([*self._given, *listed], 1):
            account = Account(name or f"key-{place}", quota, digest)
            if digest in accounts or account.name in names:
                raise KeysError(f"{self._file or '--api-key'}: there are two keys like '{account.name}'")
            known = self._accounts.get(digest)
            accounts[digest] = known if known is not None and known.is_like(account) else account
            names.add(str(account.name))
        self._accounts = accounts

    def _changed_lines(self, file: Path) -> list[tuple[str | None, bytes, Quota]] | None:
        """What the file lists; None if it is as it was."""
        try:
            status = file.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            if status.st_size > MAX_FILE_BYTES:
                raise KeysError(f"{file}: it is larger than {MAX_FILE_BYTES} bytes")
            return [*_parse(file, file.read_text(), self._quota)]
        except OSError as error:
            self._stamp = None
            raise KeysError(f"{file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise KeysError(f"{file}: it is not UTF-8") from None


def _parse(file: Path, text: str, quota: Quota) -> Iterator[tuple[str | None, bytes, Quota]]:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        comment = next((place for place, word in enumerate(words) if word.startswith("#")), len(words))
        if not (words := words[:comment]):
            continue
        name = words.pop(0)[:-1] if words[0].endswith(":") else None
        if not words or not (name is None or _NAME.fullmatch(name)):
            raise KeysError(f"{file}, line {number}: expected 'key' or 'name: key'")
        hashed = _HASHED.fullmatch(words[0])
        digest = bytes.fromhex(hashed[1]) if hashed else _digest(words[0].encode())
        try:
            yield name, digest, replace(quota, **dict(map(_setting, words[1:])))
        except ValueError as error:
            raise KeysError(f"{file}, line {number}: {error}") from None


def _setting(word: str) -> tuple[str, int | None]:
    name, _, value = word.partition("=")
    if name not in _SETTINGS:
        raise ValueError(f"after the key, expected {', '.join(sorted(_SETTINGS))} with '=' and a number")
    if value == "none":
        return name, None
    if not (value.isascii() and value.isdecimal() and int(value[:16]) > 0):
        raise ValueError(f"{name}: expected a whole number from 1, or 'none'")
    return name, int(value)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
