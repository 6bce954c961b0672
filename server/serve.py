"""Runs the HTTP server until a signal or the engine's end stops it."""

import contextlib
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from server.api.service import AppOptions
from server.app import create_app
from server.config import ServeOptions
from server.console.progress import ProgressBar
from server.engine.client import EngineClient, Listener, Stages
from server.engine.messages import Ready
from server.logs import Log, configure
from server.metrics import Metrics
from server.text_tools import load_text

_GRACE_S = 10  # how long running answers may take to finish once a signal came
_BACKLOG = 2048

log = Log(__name__)


def serve(options: ServeOptions) -> int:
    """Opens the port at once and loads behind it; the exit code."""
    configure(options.log_format, options.log_level)
    return _Serving(options).run()


class _Server(uvicorn.Server):
    """uvicorn without its habit of killing the process by the very signal that it has just obeyed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Serving:
    """The engine, the app and the listening socket, and what the engine's news mean for them."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.bar = ProgressBar()
        self.exit_code = 0
        self.metrics = Metrics(vllm_names=options.metrics_compat)
        listener = Listener(
            on_progress=self.bar,
            on_ready=self._on_ready,
            on_stats=self.metrics.step,
            on_end=self._on_end,
            on_failure=self._on_failure,
        )
        self.engine = EngineClient(options, options.max_queue, listener)
        config = uvicorn.Config(
            create_app(_app_options(options), self.engine, self.metrics, lambda card: load_text(card, self.engine)),
            loop="uvloop",
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            backlog=_BACKLOG,
        )
        self.server = _Server(config)

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
        return self.exit_code

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.options.host else socket.AF_INET
        return socket.create_server((self.options.host, self.options.port), family=family, backlog=_BACKLOG)

    def _on_ready(self, ready: Ready) -> None:
        self.bar.close()
        for line in ready.memory_plan.splitlines():
            name, _, size = line.partition("  ")
            log.info("memory", part=name, size=" ".join(size.split()))
        assert self.engine.card is not None, "the card comes before"
        name = self.options.served_model_name or self.engine.card.name
        self.metrics.serving(name, ready)
        log.info("ready", model=name, device=ready.device, dtype=ready.dtype, longest=self.engine.longest)

    def _on_end(self, stages: Stages) -> None:
        self.metrics.sequence_ended(queue_s=stages.queue_s, prefill_s=stages.prefill_s, decode_s=stages.decode_s)

    def _on_failure(self, reason: str) -> None:
        """Without its engine the server is of no use: its supervisor starts another."""
        self.bar.close()
        print(f"headrace: {reason}", file=sys.stderr)
        self.exit_code = 1
        self.server.should_exit = True


def _app_options(options: ServeOptions) -> AppOptions:
    keys = (options.api_key or "").split(",")
    return AppOptions(
        served_model_name=options.served_model_name,
        api_keys=tuple(key.strip() for key in keys if key.strip()),
        open_metrics=options.open_metrics,
        max_body_bytes=options.max_body,
        metrics_compat=options.metrics_compat,
        lenient=options.lenient,
    )
