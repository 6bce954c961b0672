"""What keeps a stream's connection alive while it has nothing to tell: comments, which every reader of events skips."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import sse

COMMENT = b": keep-alive\n\n"


class KeepAlive:
    """Adds a comment to each stream of events that has been quiet for `quiet_s` seconds since it began."""

    def __init__(self, app: ASGIApp, quiet_s: float) -> None:
        self.app = app
        self._quiet_s = quiet_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        stream = _Stream(send, self._quiet_s)
        try:
            await self.app(scope, receive, stream.send)
        finally:
            stream.close()


class _Stream:
    """One answer, which may turn out to be no stream."""

    def __init__(self, send: Send, quiet_s: float) -> None:
        self._send = send
        self._quiet_s = quiet_s
        self._last = 0.0
        self._turn = asyncio.Lock()  # a comment stands between two events, and never after the end
        self._comments: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        if self._comments is None:
            await self._send(message)
            if Headers(raw=message.get("headers", [])).get("content-type") == sse.HEADERS["content-type"]:
                self._last = time.monotonic()
                self._comments = asyncio.create_task(self._comment())
            return
        async with self._turn:
            if not message.get("more_body", False):
                self._comments.cancel()
            await self._send(message)
            self._last = time.monotonic()

    async def _comment(self) -> None:
        while True:
            await asyncio.sleep(self._last + self._quiet_s - time.monotonic())
            async with self._turn:
                if time.monotonic() - self._last >= self._quiet_s:
                    await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
                    self._last = time.monotonic()

    def close(self) -> None:
        if self._comments is not None:
            self._comments.cancel()
