"""How a request's bytes become a checked object: size, media type and encoding first, then one strict parse."""

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from server.api.connection import ClientGone
from server.api.refusals import refusal
from server.api.service import AppOptions
from server.errors import RequestTooLarge, SlowRequest, UnsupportedMediaType, shown

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, kind: type[Body], options: AppOptions) -> Body:
    """Raises BadRequest, RequestTooLarge, UnsupportedMediaType, SlowRequest; ClientGone if the client leaves meanwhile.

    Of duplicate keys the last wins. The lenient option keeps unknown fields instead of refusing them, so that
    `schemas.ignored` can name them.
    """
    _check_headers(request, options.max_body_bytes)
    try:
        async with asyncio.timeout(options.body_timeout_s):
            raw = await _read(request, options.max_body_bytes)
    except TimeoutError:
        raise SlowRequest from None
    try:
        return kind.model_validate_json(raw, extra="allow" if options.lenient else "forbid")
    except ValidationError as error:
        raise refusal(error, raw) from None


def _check_headers(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > max_bytes:
        raise RequestTooLarge(max_bytes)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"Content-Encoding '{shown(encoding)}' is not supported: send the body as it is."
        raise UnsupportedMediaType(message, code="unsupported_content_encoding")
    media_type = request.headers.get("content-type", "")
    if media_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(f"Content-Type must be application/json, not '{shown(media_type)}'.")


async def _read(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise RequestTooLarge(max_bytes)
        more = message.get("more_body", False)
    return bytes(body)
