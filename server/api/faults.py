"""In whose words a fault is told: OpenAI's, or Anthropic's on the endpoints that are Anthropic's."""

from typing import Any

from starlette.types import Scope

from server.api import sse
from server.errors import HeadraceError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def is_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def anthropic(error: HeadraceError, request_id: str | None = None) -> dict[str, Any]:
    """The same for an HTTP body and for an event in a stream."""
    fault = {"type": _TYPES.get(error.status, "api_error"), "message": error.message}
    return {"type": "error", "error": fault, "request_id": request_id}


def body(error: HeadraceError, scope: Scope) -> bytes:
    """The JSON of an answer."""
    if is_anthropic(scope["path"]):
        return sse.to_json(anthropic(error, scope["state"]["request_id"]))
    return sse.to_json(error.body())


def event(error: HeadraceError, scope: Scope) -> bytes:
    """What ends a stream before its time: the stream's own words, if it had any."""
    if error.event is not None:
        return error.event
    return sse.typed_event(anthropic(error)) if is_anthropic(scope["path"]) else sse.event(error.body())
