"""Runs the HTTP server until a signal or the engine's end stops it."""

import asyncio
import contextlib
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from server.api.resumable import Keeping
from server.api.service import AppOptions, Service
from server.app import create_app
from server.config import OptionError, ServeOptions, listed, named_folders
from server.console.progress import ProgressBar
from server.departure import Departure
from server.engine.child import ENGINE, Child
from server.engine.client import EngineClient, Listener
from server.engine.interface import Engine
from server.engine.messages import ModelCard, Ready
from server.engine.supervisor import Care
from server.exactness.recorder import Recorder
from server.keys import KeysError
from server.logs import Log, configure
from server.metrics import Metrics
from server.protocol import Patience, protocol_class
from server.quotas import Quota
from server.scale_out.engine import ClusterEngine, ClusterListener
from server.scale_out.series import ReplicaSeries
from server.scale_out.wish import wish_of
from server.spans import Tracer
from server.text_tools import load_text

if TYPE_CHECKING:
    from server.tracing import OpenTelemetry

_KEEP_ALIVE_S = 65  # longer than clients keep an idle connection: if we closed it, their next request could be lost
_BACKLOG = 2048
# A client that has vanished without a word is given up within two minutes. Connections inherit what the listener has.
_VANISHED = {
    "SO_KEEPALIVE": 1,
    "TCP_KEEPIDLE": 60,  # seconds without a byte until it is asked
    "TCP_KEEPINTVL": 15,
    "TCP_KEEPCNT": 4,
    "TCP_USER_TIMEOUT": 120_000,  # milliseconds in which it takes nothing of what it is sent
}

log = Log(__name__)


def serve(options: ServeOptions, command: tuple[str, ...] = ENGINE, first: Child | None = None) -> int:
    """Opens the port at once and loads behind it, in a process that `command` starts or has started; the exit code.

    Raises OptionError.
    """
    tracer = _tracer(options)
    configure(options.log_format, options.log_level)
    metrics = Metrics(vllm_names=options.metrics_compat)
    try:
        recorder = Recorder(Path(options.record), metrics.exchange_lost) if options.record else None
    except OSError as error:
        print(f"headrace: {options.record}: {error.strerror}", file=sys.stderr)
        return 1
    with recorder or contextlib.nullcontext(), tracer or contextlib.nullcontext():
        care = Care(command=command, first=first, watchdog_s=options.watchdog, keeps_spare=options.spare_engine)
        try:
            serving = _Serving(options, care, metrics, recorder, tracer)
        except (KeysError, OptionError) as error:
            print(f"headrace: {error}", file=sys.stderr)
            return 1
        return serving.run()


def _tracer(options: ServeOptions) -> "OpenTelemetry | None":
    if options.traces is None:
        if options.trace_content:
            raise OptionError("--trace-content: says nothing without --traces")
        return None
    if not options.traces.startswith(("http://", "https://")):
        raise OptionError("--traces: takes a URL such as http://127.0.0.1:4318/v1/traces")
    try:
        from server.tracing import OpenTelemetry
    except ModuleNotFoundError:
        raise OptionError("--traces: needs OpenTelemetry, which `pip install 'headrace[otel]'` brings") from None
    return OpenTelemetry(options.traces, has_content=options.trace_content)


class _Server(uvicorn.Server):
    """uvicorn without its ways with signals: it would stop listening at once, and die by the signal it has obeyed."""

    on_signal: dict[signal.Signals, Callable[[], None]]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number, handler in self.on_signal.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in self.on_signal:
                loop.remove_signal_handler(number)


class _Serving:
    """The engine, the app and the listening socket, and what the engine's news mean for them."""

    def __init__(
        self,
        options: ServeOptions,
        care: Care,
        metrics: Metrics,
        recorder: Recorder | None,
        tracer: Tracer | None,
    ) -> None:
        self.options = options
        self.bar = ProgressBar()
        self.exit_code = 0
        self.metrics = metrics
        self.adapters = named_folders(options.adapter)
        self.engine: Engine = self._one_engine(care) if options.ray is None else self._replicas()
        app = create_app(
            app_options(options), self.engine, metrics, lambda card: load_text(card, self.engine), recorder, tracer
        )
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=protocol_class(Patience(head_s=options.head_timeout, body_s=options.body_timeout)),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self.server = _Server(config)
        self.server.on_signal = {
            signal.SIGINT: lambda: self.departure.begin(is_interactive=True),
            signal.SIGTERM: lambda: self.departure.begin(is_interactive=False),
        }
        if isinstance(self.engine, ClusterEngine):
            self.server.on_signal[signal.SIGHUP] = self.engine.restart
        self.service: Service = app.state.service
        self.loading_text: asyncio.Task[None] | None = None
        self.departure = Departure(
            self.server, self.service, delay_s=options.drain_delay, timeout_s=options.drain_timeout
        )

    def _one_engine(self, care: Care) -> EngineClient:
        listener = Listener(
            on_progress=self.bar,
            on_card=self._on_card,
            on_ready=self._on_ready,
            on_stats=self.metrics.step,
            on_end=self.metrics.sequence_ended,
            on_restart=self.metrics.engine_restarted,
            on_failure=self._on_failure,
        )
        return EngineClient(self.options, self.options.max_queue, listener, care, self.adapters)

    def _replicas(self) -> ClusterEngine:
        """Raises OptionError."""
        wish = wish_of(self.options)
        try:
            from server.scale_out.cluster import OwnCluster
        except ModuleNotFoundError:
            raise OptionError("--ray: needs Ray, which `pip install 'headrace[ray]'` brings") from None
        series = ReplicaSeries()
        self.metrics.replicas(series)
        listener = ClusterListener(
            on_card=self._on_card,
            on_ready=self._on_ready,
            on_end=self.metrics.sequence_ended,
            on_failure=self._on_failure,
            on_census=lambda census: self.metrics.census(series.take(census)),
            on_move=self.metrics.request_moved,
        )
        return ClusterEngine(OwnCluster(self.options, wish), self.options, self.options.max_queue, listener)

    def run(self) -> int:
        try:
            listening = self._listen()
        except OSError as error:
            print(f"headrace: {self.options.host}:{self.options.port}: {error.strerror}", file=sys.stderr)
            return 1
        with listening:
            host, port = listening.getsockname()[:2]
            log.info("listening", url=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            self.server.run(sockets=[listening])
        self.bar.close()
        return 1 if self.departure.is_hasty else self.exit_code

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.options.host else socket.AF_INET
        listening = socket.create_server((self.options.host, self.options.port), family=family, backlog=_BACKLOG)
        for option, value in _VANISHED.items():
            if hasattr(socket, option):
                level = socket.SOL_SOCKET if option.startswith("SO_") else socket.IPPROTO_TCP
                listening.setsockopt(level, getattr(socket, option), value)
        return listening

    def _on_ready(self, ready: Ready) -> None:
        self.bar.close()
        for line in ready.memory_plan.splitlines():
            name, _, size = line.partition("  ")
            log.info("memory", part=name, size=" ".join(size.split()))
        assert self.engine.card is not None, "the card comes before"
        name = self.options.served_model_name or self.engine.card.name
        self.metrics.serving(name, ready)
        computing = {"device": ready.device, "dtype": ready.dtype, "kernels": ready.kernels}
        log.info("ready", model=name, **computing, longest=self.engine.longest)

    def _on_card(self, card: ModelCard) -> None:
        """The text tools load beside the weights, and what is wrong with them is known before anyone asks."""
        if (name := self.service.name_of(card)) in self.adapters:
            self._on_failure(f"adapter {name}: the model itself is served under this name")
        self.loading_text = self.loading_text or asyncio.create_task(self._load_text())

    async def _load_text(self) -> None:
        try:
            await self.service.model()
        except ValueError as error:
            self._on_failure(f"{self.options.model}: {error}")

    def _on_failure(self, reason: str) -> None:
        """Without an engine the server is of no use: whoever runs it may start another."""
        self.bar.close()
        print(f"headrace: {reason}", file=sys.stderr)
        self.exit_code = 1
        self.departure.close()


def app_options(options: ServeOptions) -> AppOptions:
    return AppOptions(
        served_model_name=options.served_model_name,
        api_keys=listed(options.api_key),
        adapter_folders=tuple(Path(folder).absolute() for folder in listed(options.adapter_folders)),
        api_key_file=Path(options.api_key_file) if options.api_key_file else None,
        quota=Quota(
            concurrency=options.limit_concurrency, requests=options.limit_requests, tokens=options.limit_tokens
        ),
        open_metrics=options.open_metrics,
        max_body_bytes=options.max_body,
        body_timeout_s=options.body_timeout,
        request_timeout_s=options.request_timeout,
        sse_keepalive_s=options.sse_keepalive,
        cors_origins=_origins(options.cors_origin),
        metrics_compat=options.metrics_compat,
        lenient=options.lenient,
        keeping=Keeping(grace_s=options.stream_grace),
    )


def _origins(values: str | None) -> tuple[str, ...]:
    for origin in listed(values):
        if not re.fullmatch(r"\*|https?://[^/?#\s]+", origin):
            raise OptionError(f"--cors-origin: '{origin}' is neither * nor an origin such as https://example.org")
    return listed(values)
