"""What happens around every request: its id, its log line, its key, and the one shape that errors have."""

import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import faults, sse
from server.api.connection import ClientGone
from server.errors import HeadersTooLarge, HeadraceError, InternalError, UnknownUrl, shown
from server.keys import Keys
from server.logs import Log
from server.metrics import Metrics

MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 100
HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/health/startup"})
CLIENT_GONE = 499  # nginx's number, for the log: nobody is there to be told

log = Log(__name__)


class RequestIds:
    """Gives every request an id that is its own, tells it in the answer, and writes the request's log line."""

    WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._running: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = self._choose(Headers(scope=scope).getlist("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.monotonic(), CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if faults.is_anthropic(scope["path"]):
                    headers["request-id"] = request_id
            await send(message)

        self._running.add(request_id)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self._running.discard(request_id)
            self._log(scope, status, time.monotonic() - started)

    def _choose(self, offered: list[str]) -> str:
        if len(offered) == 1 and self.WELL_FORMED.fullmatch(offered[0]) and offered[0] not in self._running:
            return offered[0]
        return f"req-{secrets.token_hex(16)}"

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        write = log.debug if scope["path"] in HEALTH_PATHS or scope["path"] == "/metrics" else log.info
        write(
            "request",
            request_id=scope["state"]["request_id"],
            method=scope["method"],
            path=shown(scope["path"]),
            status=status,
            milliseconds=round(seconds * 1000, 1),
            **_key_name(scope),
        )


def _key_name(scope: Scope) -> dict[str, str]:
    account = scope["state"].get("account")
    return {"key": account.name} if account is not None and account.name is not None else {}


class Errors:
    """Turns exceptions into answers: a status and JSON, or, once a stream has begun, an event and no proper end."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started: Message | None = None

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientGone:
            self._metrics.client_left()
        except HeadraceError as error:
            await self._tell(error, scope, started, send)
        except Exception:
            log.error("request failed", request_id=scope["state"]["request_id"])
            await self._tell(InternalError(), scope, started, send)

    async def _tell(self, error: HeadraceError, scope: Scope, started: Message | None, send: Send) -> None:
        if not scope["state"].get("is_accepted"):
            self._metrics.rejected(error.code or error.type)
        if started is None:
            await _send_error(error, scope, send)
        elif Headers(raw=started["headers"]).get("content-type") == sse.HEADERS["content-type"]:
            # Left without its end, so that the server closes the connection and HTTP itself says "incomplete".
            await send({"type": "http.response.body", "body": faults.event(error, scope), "more_body": True})


async def _send_error(error: HeadraceError, scope: Scope, send: Send) -> None:
    body = faults.body(error, scope)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


class Gate:
    """Lets through what is well-formed and has a key; `open_paths` need none. Everything else is closed by default."""

    def __init__(self, app: ASGIApp, keys: Keys, open_paths: frozenset[str]) -> None:
        self.app = app
        self._keys = keys
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _check_size(scope["headers"])
            if scope["path"] not in self._open_paths:
                scope["state"]["account"] = self._keys.account_of(_offered_key(Headers(scope=scope)))
            _check_path(scope)
        await self.app(scope, receive, send)


def _offered_key(headers: Headers) -> bytes | None:
    """As OpenAI's clients send it, or without that as Anthropic's do; None for none, and for several."""
    tokens, keys = headers.getlist("authorization"), headers.getlist("x-api-key")
    if not tokens:
        return keys[0].strip().encode("latin-1") if len(keys) == 1 else None
    scheme, _, key = tokens[0].partition(" ")
    return key.strip().encode("latin-1") if len(tokens) == 1 and scheme.lower() == "bearer" else None


def _check_size(headers: list[tuple[bytes, bytes]]) -> None:
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise HeadersTooLarge(MAX_HEADER_BYTES, MAX_HEADERS)


def _check_path(scope: Scope) -> None:
    """An encoded slash is no separator, though the decoded path that routes are matched by says so.

    Only model ids may hold one.
    """
    raw_path = scope.get("raw_path", b"")
    if b"%2f" in raw_path.lower() and not raw_path.startswith(b"/v1/models/"):
        raise UnknownUrl(scope["method"], scope["path"])
