"""What can go wrong with a request, and how each fault is told to the client.

One exception class per kind of fault: status, type and code stand on the class, message and parameter on the instance.
Raise them anywhere in `server/`; `api/middleware.py` turns them into the one JSON shape that OpenAI clients read.
"""

import math
from typing import ClassVar

SHOWN_LENGTH = 64  # characters of a client's input that an error may repeat


def shown(text: str) -> str:
    """Repeats a client's own text safely: at most `SHOWN_LENGTH` characters, none of them a control character."""
    short = text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 1] + "…"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in short)


class HeadraceError(Exception):
    """A fault with an HTTP answer. `code` on the instance overrides the class's where one class covers several."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.event: bytes | None = None  # in which the stream that it ends tells of it, in that stream's own words

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer beside its content type."""
        return {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """The answer's JSON, the same for an HTTP body and for an event in a stream."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InternalError(HeadraceError):
    """A fault of ours on this request. `retryable` tells clients whether the same request may succeed again."""

    def __init__(self, message: str = "The server failed on this request.", *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable

    @property
    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "true" if self.retryable else "false"}


class BadRequest(HeadraceError):
    """The client's request cannot be honoured as it stands."""

    status = 400
    type = "invalid_request_error"
    default_code: ClassVar[str | None] = None


class UnsupportedParameter(BadRequest):
    """A parameter that this server knows of and does not honour."""

    default_code = "unsupported_parameter"


class PromptTooLong(BadRequest):
    """Prompt, or prompt and output together, exceed what a sequence can reach. The sentences are OpenAI's, which
    clients match on.
    """

    default_code = "context_length_exceeded"

    def __init__(
        self,
        *,
        limit: int,
        prompt_tokens: int,
        param: str,
        max_tokens: int | None = None,
        limit_param: str = "max_tokens",
    ) -> None:
        """All in tokens; `param` is the field the prompt came from, `max_tokens` what the client asked for if it did.

        The field at fault is `limit_param`, where `max_tokens` came from, if that alone exceeds the limit.
        """
        message = f"This model's maximum context length is {limit} tokens. However, "
        if max_tokens is None or prompt_tokens > limit:
            message += f"your {param} resulted in {prompt_tokens} tokens. Please reduce the length of the {param}."
        else:
            total = prompt_tokens + max_tokens
            message += f"you requested {total} tokens ({prompt_tokens} in the {param}, {max_tokens} in the completion)."
            message += f" Please reduce the length of the {param} or of the completion."
        too_much_output = max_tokens is not None and max_tokens > limit >= prompt_tokens
        super().__init__(message, param=limit_param if too_much_output else param)


class Unauthorized(HeadraceError):
    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("A valid API key is required: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.")

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class Forbidden(HeadraceError):
    """This server does not do that, whoever asks."""

    status = 403
    type = "invalid_request_error"
    default_code = "forbidden"


class UnknownUrl(HeadraceError):
    status = 404
    type = "invalid_request_error"
    default_code = "unknown_url"

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"Unknown request URL: {shown(method)} {shown(path)}.")


class ModelNotFound(HeadraceError):
    status = 404
    type = "invalid_request_error"
    default_code = "model_not_found"

    def __init__(self, model: str, *, param: str = "model") -> None:
        message = f"The model `{shown(model)}` does not exist or you do not have access to it."
        super().__init__(message, param=param)


class StreamNotFound(HeadraceError):
    """There is nothing to resume, or nothing of this client's."""

    status = 404
    type = "invalid_request_error"
    default_code = "stream_not_found"


class MethodNotAllowed(HeadraceError):
    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"Not allowed to {shown(method)} this URL; it takes {allowed}.")
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        return {"allow": self.allowed}


class SlowRequest(HeadraceError):
    """The request has not come within the time that it may take."""

    status = 408
    type = "invalid_request_error"
    default_code = "slow_request"

    def __init__(self) -> None:
        super().__init__("The request took too long to arrive.")

    @property
    def headers(self) -> dict[str, str]:
        return {"connection": "close"}  # what is still to come is never read


class StreamTakenOver(HeadraceError):
    """A resumable stream has one reader, the newest."""

    status = 409
    type = "invalid_request_error"
    default_code = "stream_taken_over"

    def __init__(self) -> None:
        super().__init__("Another reader has taken over this stream.")


class RequestTooLarge(HeadraceError):
    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than {limit} bytes.")

    @property
    def headers(self) -> dict[str, str]:
        return {"connection": "close"}  # the rest of the body is never read


class UnsupportedMediaType(HeadraceError):
    """The body is not plain JSON: the code tells a wrong `Content-Type` from a `Content-Encoding`."""

    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"

    @property
    def headers(self) -> dict[str, str]:
        return {"connection": "close"}  # as above


class HeadersTooLarge(HeadraceError):
    status = 431
    type = "invalid_request_error"
    default_code = "headers_too_large"

    def __init__(self, max_bytes: int, max_count: int) -> None:
        super().__init__(f"The request has more than {max_count} headers or {max_bytes} bytes of them.")

    @property
    def headers(self) -> dict[str, str]:
        return {"connection": "close"}


class RequestTimedOut(HeadraceError):
    """The answer was not complete within the time that a request may take."""

    status = 504
    default_code = "request_timeout"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"The request was not finished within {limit_s:g} seconds.")

    @property
    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}  # it would take as long again


LONGEST_WAIT_S = 120.0  # openai-python gives up on longer waits


def _retry_headers(after_s: float) -> dict[str, str]:
    wait_s = min(max(after_s, 0.001), LONGEST_WAIT_S)
    return {
        "retry-after": str(math.ceil(wait_s)),
        "retry-after-ms": str(math.ceil(wait_s * 1000)),
        "x-should-retry": "true",
    }


class RateLimited(HeadraceError):
    """A key has taken what it may, for now or, where `retry_after_s` is None, for good."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float | None, quota: dict[str, str]) -> None:
        """`quota` has the headers that tell what is left."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.quota = quota

    @property
    def headers(self) -> dict[str, str]:
        retry = {"x-should-retry": "false"} if self.retry_after_s is None else _retry_headers(self.retry_after_s)
        return self.quota | retry


class Unavailable(HeadraceError):
    """The server cannot take the request now. `retry_after_s` is when trying again makes sense."""

    status = 503
    type = "service_unavailable_error"
    default_code = "server_is_overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        return _retry_headers(self.retry_after_s)


class Overloaded(Unavailable):
    """The queue is full."""


class ModelLoading(Unavailable):
    default_code = "model_loading"


class EngineGone(Unavailable):
    """The engine process has ended; `code` says that another may come."""

    default_code = "engine_restarting"


class ServerDraining(Unavailable):
    """The server finishes what it has and takes nothing new."""

    default_code = "server_draining"

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "connection": "close"}
