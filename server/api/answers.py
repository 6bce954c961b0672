"""How an answer that is not generated is sent."""

from typing import Any

from fastapi import Response

from server.api.sse import to_json

IGNORED = "x-headrace-ignored"


def ignored_header(names: list[str]) -> dict[str, str]:
    """Tells the client which of its fields had no influence, so that nothing is ignored silently."""
    return {IGNORED: ", ".join(names)} if names else {}


def json_response(payload: Any, *, ignored: list[str] | None = None) -> Response:
    return Response(to_json(payload), media_type="application/json", headers=ignored_header(ignored or []))
