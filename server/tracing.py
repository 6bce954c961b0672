"""How spans of requests travel: in the caller's trace where there is one, by OTLP over HTTP to whoever collects them.

Needs the extra `headrace[otel]`: nothing else imports OpenTelemetry, and this is imported where traces are asked for.
The names are those of its conventions for HTTP.
"""

import os
import threading
from importlib.metadata import version
from typing import Self

from opentelemetry import context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.middleware import HEALTH_PATHS
from server.spans import Told

_UNTOLD = HEALTH_PATHS | {"/metrics"}
_EXPORT_S = 5.0
_LEAVE_S = 2.0  # for the last spans; a collector that does not answer may not keep the server

_propagator = TraceContextTextMapPropagator()


class OpenTelemetry:
    """A `Tracer` that sends its spans to a collector, from a thread of its own; what that does not take is lost."""

    def __init__(self, endpoint: str, *, has_content: bool) -> None:
        """`endpoint` is a collector's URL for traces. The SDK's own variables, such as OTEL_TRACES_SAMPLER, hold."""
        self.has_content = has_content
        name = os.environ.get("OTEL_SERVICE_NAME", "headrace")
        resource = Resource.create({"service.name": name, "service.version": version("headrace")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_S)))
        self._tracer = self._provider.get_tracer("headrace", version("headrace"))

    def around(self, app: ASGIApp) -> ASGIApp:
        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            is_told = scope["type"] == "http" and scope["path"] not in _UNTOLD
            await (self._in_span(app, scope, receive, send) if is_told else app(scope, receive, send))

        return traced

    async def _in_span(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        asked = {"http.request.method": method, "url.scheme": scope["scheme"], "url.path": scope["path"]}
        parent = _propagator.extract(dict(Headers(scope=scope)))
        with self._tracer.start_as_current_span(method, parent, SpanKind.SERVER, asked) as span:

            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_attribute("error.type", str(message["status"]))
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await app(scope, receive, watch)
            if (route := scope.get("route")) is not None:  # known once the router has run
                span.update_name(f"{method} {route.path}")
                span.set_attribute("http.route", route.path)

    def here(self) -> context.Context:
        return context.get_current()

    def tell(self, span: Told) -> None:
        assert isinstance(span.parent, context.Context)
        own = self._tracer.start_span(
            span.name, span.parent, SpanKind.INTERNAL, span.attributes, start_time=span.started
        )
        for name, moment in span.events:
            own.add_event(name, timestamp=moment)
        if span.error is not None:
            own.set_attribute("error.type", span.error)
            own.set_status(Status(StatusCode.ERROR))
        own.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Sends what is left, for a moment."""
        leaving = threading.Thread(target=self._provider.shutdown, daemon=True)
        leaving.start()
        leaving.join(_LEAVE_S)
