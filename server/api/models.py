"""GET /v1/models and /v1/models/{id}: what is served."""

from typing import Any

from fastapi import APIRouter, Request, Response

from server.api.answers import json_response
from server.api.service import ServedModel, Service, service_of
from server.engine.adapters import Adapter
from server.errors import UnknownUrl

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The served model, and the adapters it can be computed with."""
    service = service_of(request)
    model = await service.model()
    adapters = [describe_adapter(service, model, adapter) for adapter in service.engine.adapters.named]
    return json_response({"object": "list", "data": [_describe(service, model), *adapters]})


@router.get("/v1/models/{model_id:path}")  # an id may hold slashes
async def retrieve_model(request: Request, model_id: str) -> Response:
    """The served model or an adapter, by its id."""
    if not model_id:
        raise UnknownUrl(request.method, request.scope["path"])
    service = service_of(request)
    model = await service.model()
    adapter = model.adapter(model_id)
    return json_response(describe_adapter(service, model, adapter) if adapter else _describe(service, model))


def _describe(service: Service, model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": service.created,
        "owned_by": "headrace",
        "root": model.card.name,
        "parent": None,
        "max_model_len": model.card.context_length,
    }


def describe_adapter(service: Service, model: ServedModel, adapter: Adapter) -> dict[str, Any]:
    """As vLLM does, but for the folder, of which clients learn the name only."""
    return _describe(service, model) | {"id": adapter.name, "root": adapter.folder.name, "parent": model.name}
