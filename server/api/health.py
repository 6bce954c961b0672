"""What operators and their machines ask: is it alive, is it ready, how is it doing."""

from fastapi import APIRouter, Request, Response

from server.api.answers import json_response
from server.api.service import Service, service_of
from server.api.sse import to_json
from server.errors import HeadraceError
from server.metrics import CONTENT_TYPE

router = APIRouter()


@router.get("/health")
@router.get("/health/live")
async def live(request: Request) -> Response:
    """200 while the server works or may come to it; 503 once only a restart helps, or while the engine is hung."""
    service = service_of(request)
    try:
        service.check_alive()
    except HeadraceError as error:
        return _not_yet(error, service)
    return json_response({"status": "ok"})


@router.get("/health/startup")
async def startup(request: Request) -> Response:
    """200 once the model is loaded and warm, whatever happens later."""
    service = service_of(request)
    try:
        service.check_loaded()
    except HeadraceError as error:
        return _not_yet(error, service)
    return json_response({"status": "ok"})


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """200 while requests are welcome; 503 says why not, and while loading how far that is."""
    service = service_of(request)
    try:
        await service.check_ready()
    except HeadraceError as error:
        return _not_yet(error, service)
    return json_response({"status": "ok"})


def _not_yet(error: HeadraceError, service: Service) -> Response:
    """Answered here and not raised: a probe that waits is no rejected request."""
    progress = service.engine.progress
    how_far = progress and {key: getattr(progress, key) for key in ("stage", "done", "total", "unit")}
    answer = {**error.body(), "status": error.code, "progress": how_far}
    return Response(to_json(answer), error.status, error.headers, "application/json")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Every series, in Prometheus' text format."""
    service = service_of(request)
    card = service.engine.card
    if card is not None:
        service.metrics.serving(service.name_of(card), service.engine.ready)
    return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE})
