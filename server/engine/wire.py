"""How messages travel between the two processes: msgpack in frames, each led by its length in four bytes."""

import asyncio
import select
import socket
from typing import Generic, TypeVar

import msgspec

Received = TypeVar("Received")

_LENGTH_BYTES = 4
_READ_BYTES = 1 << 20


def frame(message: object) -> bytes:
    payload = msgspec.msgpack.encode(message)
    return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload


class Inbox(Generic[Received]):
    """The engine's end: takes what has arrived, without waiting unless told to."""

    def __init__(self, connection: socket.socket, kind: object) -> None:
        self._connection = connection
        self._decoder = msgspec.msgpack.Decoder[Received](kind)
        self._buffer = bytearray()

    def take(self, *, wait: bool) -> list[Received]:
        """Everything complete by now, or with `wait` at least one message. Raises EOFError when the peer is gone."""
        while True:
            self._read(wait)
            messages = self._split()
            if messages or not wait:
                return messages

    def _read(self, wait: bool) -> None:
        while select.select([self._connection], [], [], None if wait else 0)[0]:
            data = self._connection.recv(_READ_BYTES)
            if not data:
                raise EOFError
            self._buffer += data
            wait = False

    def _split(self) -> list[Received]:
        messages = []
        while len(self._buffer) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._buffer[:_LENGTH_BYTES], "little")
            if len(self._buffer) < end:
                break
            messages.append(self._decoder.decode(self._buffer[_LENGTH_BYTES:end]))
            del self._buffer[:end]
        return messages


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next payload. Raises IncompleteReadError when the peer is gone."""
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "little")
    return await reader.readexactly(length)
