"""The API's description: what FastAPI does not see, since routes read bodies and write answers themselves."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from server.api import faults, shapes
from server.api.endpoints import ENDPOINTS, Endpoint
from server.api.resumable import STREAM, WISH
from server.api.schemas import Strict
from server.exactness.receipt import RECEIPT

_ABOUT = """\
An inference server for decoder-only text generators, for the clients of OpenAI's API and of Anthropic's.

A field that is null counts as absent. What cannot be honoured is refused with 400 and the field's name; what is
accepted without effect is named in the header `x-headrace-ignored`. Of equal keys the last counts."""

_FAULTS = {
    400: "The request cannot be honoured as it stands.",
    401: "The key is missing or wrong.",
    403: "This server does not do that, whoever asks.",
    404: "There is no such model or stream.",
    408: "The request took too long to arrive.",
    409: "Another reader has taken over.",
    413: "The body is larger than the server takes.",
    415: "The body is no plain JSON.",
    429: "The key has taken what it may; `retry-after` says when to come back.",
    500: "The server failed on this request; `x-should-retry` says whether to try again.",
    503: "The server is loading, full, restarting or leaving; `retry-after` says when to come back.",
    504: "The answer took longer than the server lets one take.",
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "As OpenAI's clients send a key."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "As Anthropic's do."},
}
_HEADERS = {
    "x-request-id": "The request's id: the client's own, if it sent a well-formed one.",
    "x-headrace-ignored": "Fields of the body that were accepted without effect.",
    RECEIPT: "What decided the answer: the same request with this seed on a server with this receipt has the same.",
    STREAM: "The id of a stream that can be read on after its connection broke.",
}
_WISH = {
    "name": WISH,
    "in": "header",
    "description": "Keep the stream for a reader who comes back for it; only where `stream` is true.",
    "schema": {"type": "string", "enum": ["true", "false"], "default": "false"},
}


def describe(app: FastAPI, bodies: Mapping[str, type[Strict]], open_paths: frozenset[str]) -> dict[str, Any]:
    """The OpenAPI document, made once. `open_paths` need no key."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
        schemas = _Schemas(bodies)
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation |= schemas.described(path) | ({"security": []} if path in open_paths else {})
        document["tags"] = [{"name": group} for group in dict.fromkeys(told.group for told in ENDPOINTS.values())]
        document["components"] = {"schemas": schemas.definitions, "securitySchemes": _SCHEMES}
        document["security"] = [{name: []} for name in _SCHEMES]
        app.openapi_schema = document
    return app.openapi_schema


class _Schemas:
    """The schemas of all that is taken and told, and operations that refer to them."""

    def __init__(self, bodies: Mapping[str, type[Strict]]) -> None:
        self._bodies = bodies
        told = {shape for endpoint in ENDPOINTS.values() for shape in (endpoint.answer, endpoint.event) if shape}
        told |= {shapes.Error, shapes.AnthropicError}
        models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(body, "validation") for body in bodies.values()]
        models += [(shape, "serialization") for shape in sorted(told, key=lambda shape: shape.__name__)]
        references, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
        self.definitions: dict[str, Any] = definitions["$defs"]
        self._references = {model: reference for (model, _), reference in references.items()}

    def described(self, path: str) -> dict[str, Any]:
        """The parts of an operation that FastAPI does not know."""
        endpoint, body = ENDPOINTS[path], self._bodies.get(path)
        operation: dict[str, Any] = {
            "operationId": path.strip("/").translate({ord("/"): "_", ord("{"): None, ord("}"): None}),
            "tags": [endpoint.group],
            "responses": {"200": self._answer(endpoint)} | self._faults(path, endpoint),
        }
        if body is not None:
            examples = {name: {"value": example} for name, example in endpoint.examples.items()}
            content = {"schema": self._references[body], "examples": examples}
            operation["requestBody"] = {"required": True, "content": {"application/json": content}}
            operation["parameters"] = [_WISH] if endpoint.event is not None else []
        return operation

    def _answer(self, endpoint: Endpoint) -> dict[str, Any]:
        content: dict[str, Any] = {}
        if endpoint.answer is not None:
            content["application/json"] = {"schema": self._references[endpoint.answer]}
        if endpoint.event is not None:
            content["text/event-stream"] = {"schema": _event(self._references[endpoint.event], endpoint.ends_with_done)}
        names = _HEADERS if endpoint.event is not None else ["x-request-id"]
        return {
            "description": endpoint.stream or "The answer.",
            "headers": {name: {"description": _HEADERS[name], "schema": {"type": "string"}} for name in names},
            "content": content or {"text/plain": {"schema": {"type": "string"}}},
        }

    def _faults(self, path: str, endpoint: Endpoint) -> dict[str, Any]:
        shape = shapes.AnthropicError if faults.is_anthropic(path) else shapes.Error
        content = {"application/json": {"schema": self._references[shape]}}
        return {str(status): {"description": _FAULTS[status], "content": content} for status in endpoint.faults}


def _event(data: dict[str, Any], ends_with_done: bool) -> dict[str, Any]:
    """One event of a stream, as readers of `text/event-stream` see it: its data are JSON within a string."""
    json_text = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    told = {"anyOf": [json_text, {"type": "string", "const": "[DONE]"}]} if ends_with_done else json_text
    text = {"type": "string"}
    return {"type": "object", "properties": {"data": told, "event": text, "id": text}, "required": ["data"]}
