"""How one HTTP/1.1 connection carries one request at a time, at the least cost that Python allows."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

Listener = Callable[[bytes], None]


class Cut(ConnectionError):
    """The connection ended before the answer did."""


class NotHttp(Exception):
    """What came over the connection is no HTTP answer."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an OpenAI-compatible server listens and the key it wants; paths below are relative to its root."""

    url: str
    host: str
    port: int
    is_tls: bool
    root: str  # "" or a path such as "/gateway"
    api_key: str | None

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> "Address":
        """Reads `http[s]://host[:port][/path][/v1]`; ValueError says what is wrong with another text."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http:// or https:// address")
        if parts.username or parts.query or parts.fragment:
            raise ValueError("an address has no user, query or fragment (a key goes into --api-key)")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key has characters that no HTTP header can carry")
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        root = parts.path.rstrip("/").removesuffix("/v1")
        return cls(url, parts.hostname, port, is_tls, root, api_key)

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The bytes of a request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{method} {self.root}{path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            "User-Agent: headrace-bench",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        return "\r\n".join([*lines, "", ""]).encode("ascii") + body


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes  # empty where a listener took it


class Connection(asyncio.Protocol):
    """One keep-alive connection; httptools parses, and a listener gets each part of the body as it arrives."""

    def __init__(self) -> None:
        self.is_open = False
        self.has_answered = False  # a byte of the present answer has come
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._listener: Listener | None = None
        self._body: list[bytes] = []
        self._answer: asyncio.Future[Response] | None = None

    @classmethod
    async def open(cls, address: Address) -> "Connection":
        """Raises OSError where nobody listens."""
        tls = ssl.create_default_context() if address.is_tls else None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, address.host, address.port, ssl=tls)
        return connection

    async def exchange(self, request: bytes, listener: Listener | None = None) -> Response:
        """Sends a request and waits for the whole answer. `listener` gets the body of a 200 piece by piece.

        Raises Cut and NotHttp. A caller that stops waiting must `close` the connection.
        """
        assert self._transport is not None, "exchange before open"
        assert self._answer is None, "one request at a time"
        self._listener, self._body, self.has_answered = listener, [], False
        if not self.is_open:
            raise Cut("the connection was closed")
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        self.is_open = False
        if self._transport:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = cast(asyncio.Transport, transport), True  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._answer is None:
            self.close()  # bytes that nobody asked for: whatever follows could not be told from an answer
            return
        self.has_answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(NotHttp(str(error)))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._fail(Cut(str(exc) if exc else "the server closed the connection"))

    # httptools callbacks

    def on_body(self, body: bytes) -> None:
        assert self._parser is not None
        if self._listener and self._parser.get_status_code() == 200:
            self._listener(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if not self._parser.should_keep_alive():
            self.is_open = False
        if self._answer and not self._answer.done():
            self._answer.set_result(Response(self._parser.get_status_code(), b"".join(self._body)))

    def _fail(self, error: Exception) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)
