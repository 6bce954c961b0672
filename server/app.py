"""How the HTTP side is put together: routes, what stands around them, and the engine's life within the app's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from server.api import (
    about,
    adapters,
    chat,
    chat_body,
    completions,
    decisions,
    docs,
    embeddings,
    health,
    models,
    streams,
    tokenize,
)
from server.api.answers import IGNORED
from server.api.keepalive import KeepAlive
from server.api.messages import route as messages
from server.api.messages.body import CountBody, MessagesBody
from server.api.middleware import HEALTH_PATHS, Errors, Gate, RequestIds
from server.api.openapi import describe
from server.api.responses import route as responses
from server.api.responses.body import ResponsesBody
from server.api.resumable import STREAM
from server.api.schemas import Strict
from server.api.service import VERSION, AppOptions, Service
from server.engine.interface import Engine
from server.engine.messages import ModelCard
from server.errors import BadRequest, MethodNotAllowed, UnknownUrl
from server.exactness.receipt import RECEIPT
from server.exactness.recorder import Recorder
from server.keys import Keys
from server.metrics import Metrics
from server.spans import Tracer
from server.text_tools import TextTools

# Headers of answers that scripts of another origin may read.
TOLD_TO_PAGES = (
    *("x-request-id", "request-id", "retry-after", "retry-after-ms", "x-should-retry"),
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
    *(RECEIPT, STREAM, IGNORED),
)

BODIES: dict[str, type[Strict]] = {
    "/v1/completions": completions.CompletionBody,
    "/v1/chat/completions": chat_body.ChatBody,
    "/v1/responses": ResponsesBody,
    "/v1/messages": MessagesBody,
    "/v1/messages/count_tokens": CountBody,
    "/v1/embeddings": embeddings.EmbeddingBody,
    "/v1/decisions": decisions.DecisionBody,
    "/tokenize": tokenize.TokenizeBody,
    "/detokenize": tokenize.DetokenizeBody,
    "/v1/load_lora_adapter": adapters.LoadBody,
    "/v1/unload_lora_adapter": adapters.UnloadBody,
}


def create_app(
    options: AppOptions,
    engine: Engine,
    metrics: Metrics,
    load_text: Callable[[ModelCard], TextTools],
    recorder: Recorder | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """The app starts and stops `engine`; `load_text` runs once, off the event loop, when the model's card is known.

    Raises KeysError.
    """
    service = Service(options, engine, metrics, load_text, recorder, tracer)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        watching = asyncio.create_task(metrics.watch_loop())
        try:
            yield
        finally:
            watching.cancel()
            await service.streams.close()
            await engine.stop()

    app = FastAPI(
        title="Headrace",
        version=VERSION,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would answer before the key is asked for, and drop the body
        docs_url=None,  # FastAPI's pages would load scripts from elsewhere
        redoc_url=None,
        exception_handlers={HTTPException: _rename},
    )
    app.state.service = service
    generating = (chat, completions, responses, messages, embeddings, decisions)
    for resource in (*generating, streams, models, adapters, tokenize, about, docs, health):
        app.include_router(resource.router)
    open_paths = HEALTH_PATHS | {docs.PATH} | ({"/metrics"} if options.open_metrics else set())
    app.add_middleware(Gate, keys=Keys(options.api_keys, options.api_key_file, options.quota), open_paths=open_paths)
    if options.sse_keepalive_s:
        app.add_middleware(KeepAlive, quiet_s=options.sse_keepalive_s)
    app.add_middleware(Errors, metrics=metrics)
    if options.cors_origins:  # before the gate, since browsers ask without a key whether they may ask
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=TOLD_TO_PAGES,
        )
    app.add_middleware(RequestIds)
    if tracer is not None:
        app.add_middleware(tracer.around)  # the last added stands outermost
    app.openapi = lambda: describe(app, BODIES, open_paths)  # type: ignore[method-assign]
    return app


async def _rename(request: Request, error: Exception) -> NoReturn:
    """The router's own refusals, as ours."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 404:
        raise UnknownUrl(request.method, path)
    if error.status_code == 405:
        raise MethodNotAllowed(request.method, (error.headers or {}).get("Allow", ""))
    raise BadRequest("The request could not be understood.")
