"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: adapters that come and go, in vLLM's words."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, Field

from server.api.answers import json_response
from server.api.body import read_body
from server.api.models import describe_adapter
from server.api.refusals import custom
from server.api.schemas import Strict, ignored
from server.api.service import Service, service_of
from server.config import ADAPTER_NAME
from server.errors import BadRequest, Forbidden, shown

router = APIRouter()


def _check_name(name: str) -> str:
    if not ADAPTER_NAME.fullmatch(name):
        raise custom("invalid_value", f"Invalid 'lora_name': expected {ADAPTER_NAME.pattern}, but got '{shown(name)}'.")
    return name


Name = Annotated[str, AfterValidator(_check_name)]


class LoadBody(Strict):
    lora_name: Name
    """The name under which requests ask for it, as their `model`."""
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    """A folder as PEFT saves it, within those that `--adapter-folders` names, or relative to one of them."""


class UnloadBody(Strict):
    lora_name: Name
    """The name of the adapter. Answers that have begun go on with it to their end."""


def _check_allowed(service: Service) -> None:
    options = service.options
    if not (options.api_keys or options.api_key_file):
        raise Forbidden("Adapters are loaded and unloaded only on servers that ask for API keys.")


def _locate(path: str, roots: Iterable[Path]) -> Path:
    """The folder, links resolved. Of what lies elsewhere nothing is told, not even whether it is there."""
    for root in roots:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long a name, links in a circle, a NUL
            folder = (root / path).resolve()
            if folder.is_relative_to(root.resolve()) and folder.is_dir():
                return folder
    message = "Invalid 'lora_path': there is no such folder within those that this server loads adapters from."
    raise BadRequest(message, param="lora_path", code="invalid_value")


@router.post("/v1/load_lora_adapter")
async def load_adapter(request: Request) -> Response:
    """Loads an adapter and answers when requests may name it; steps go on meanwhile."""
    service = service_of(request)
    body = await read_body(request, LoadBody, service.options)
    _check_allowed(service)
    model = await service.generating_model()
    if body.lora_name == model.name:
        message = "Invalid 'lora_name': the model itself is served under this name."
        raise BadRequest(message, param="lora_name", code="invalid_value")
    folder = _locate(body.lora_path, service.options.adapter_folders)
    adapter = await service.engine.load_adapter(body.lora_name, folder)
    return json_response(describe_adapter(service, model, adapter), ignored=ignored(body))


@router.post("/v1/unload_lora_adapter")
async def unload_adapter(request: Request) -> Response:
    """Takes an adapter's name away at once, and its weights when no answer needs them any more."""
    service = service_of(request)
    body = await read_body(request, UnloadBody, service.options)
    _check_allowed(service)
    service.engine.adapters.unload(body.lora_name)
    return json_response({"id": body.lora_name, "object": "model", "deleted": True}, ignored=ignored(body))
