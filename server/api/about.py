"""What the server can tell of itself: its version, the model's tokenizer, and all that it takes."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from server.api.answers import json_response
from server.api.conversation import TEMPLATE_VARIABLES
from server.api.service import VERSION, ServedModel, service_of
from server.api.structure import StructuredOutputs
from server.text.prompts import Prompts

router = APIRouter()

_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "maxLength", "minLength", "minItems", "maxItems", "enum", "const")


@router.get("/version")
async def version(request: Request) -> Response:
    """The server's version."""
    return json_response({"version": VERSION})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """What a client needs to know of the tokenizer to write prompts, chat template and special tokens included."""
    card = (await service_of(request).model()).card
    named = {"bos_token": None, "eos_token": None, **card.special_tokens}
    limits = {"model_max_length": card.context_length, "vocab_size": card.vocab_size}
    return json_response({**limits, **named, "eos_token_ids": card.eos_ids, "chat_template": card.chat_template})


@router.get("/v1/capabilities")
async def capabilities(request: Request) -> Response:
    """What the model is, and every field of every body with its range, from the models that check them."""
    model = await service_of(request).model()
    description = request.app.openapi()
    return json_response({"version": VERSION, "model": _model(model), "endpoints": dict(_endpoints(description))})


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "adapters": [adapter.name for adapter in model.adapters.named],
        "family": model.card.family,
        "context_length": model.card.context_length,
        "vocab_size": model.card.vocab_size,
        "modalities": {"input": ["text"], "output": ["text"]},
        "structured_outputs": [field.alias or name for name, field in StructuredOutputs.model_fields.items()],
        "chat": _chat(model.tools.prompts) if model.card.chat_template is not None else None,
    }


def _chat(prompts: Prompts) -> dict[str, Any]:
    """How the model is told of tools and calls them, and whether it marks its reasoning."""
    tools = prompts.format.tools
    return {
        "tool_format": tools.syntax.kind,
        "template_knows_tools": tools.is_native,
        "reasons": prompts.format.reasoning is not None,
        "template_variables": [name for name in sorted(TEMPLATE_VARIABLES) if prompts.knows(name)],
    }


def _endpoints(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    schemas = description["components"]["schemas"]
    for path, operations in description["paths"].items():
        endpoint: dict[str, Any] = {"methods": [method.upper() for method in operations]}
        body = operations.get("post", {}).get("requestBody")
        if body is not None:
            schema = schemas[body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]]
            required = schema.get("required", [])
            fields = schema["properties"].items()
            endpoint["parameters"] = {name: _parameter(field, schemas, name in required) for name, field in fields}
        yield path, endpoint


def _parameter(field: dict[str, Any], schemas: dict[str, Any], is_required: bool) -> dict[str, Any]:
    branches = [branch for branch in _branches(field, schemas) if branch.get("type") != "null"]
    bounds: dict[str, Any] = {}
    for branch in branches:
        bounds |= {bound: branch[bound] for bound in _BOUNDS if bound in branch}
    return {
        "types": list(dict.fromkeys(branch["type"] for branch in branches if "type" in branch)),
        **bounds,
        **({} if is_required else {"default": field.get("default")}),
        "is_required": is_required,
        "effect": "refused" if not branches else field.get("x-effect", "full"),
        "description": field.get("description"),
    }


def _branches(field: dict[str, Any], schemas: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The forms that a field can have, those within others included."""
    if "$ref" in field:
        yield from _branches(schemas[field["$ref"].rpartition("/")[2]], schemas)
    elif forms := field.get("anyOf") or field.get("oneOf"):
        for form in forms:
            yield from _branches(form, schemas)
    else:
        yield field
