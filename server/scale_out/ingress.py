"""The whole server as an application of Ray Serve, where Serve's own proxies listen: KubeRay, `serve deploy` or `run`.

serve run server.scale_out.ingress:application ray=2 threads=1 kv_memory=1
"""

from argparse import Namespace
from typing import Any

import msgspec
from ray import serve

from server.app import create_app
from server.config import OptionError, ServeOptions, options_of, read
from server.metrics import Metrics
from server.scale_out import deployment
from server.scale_out.engine import ClusterEngine, ClusterListener
from server.scale_out.series import ReplicaSeries
from server.scale_out.served import Served
from server.scale_out.wish import wish_of
from server.serve import app_options
from server.text_tools import load_text

NAME = "Ingress"

# What our own process does where it listens itself; here Serve's does.
_SERVES_OWN = ("host", "port", "head_timeout", "drain_delay", "log_format", "log_level")
_NEEDS_A_PROCESS = ("record", "traces", "trace_content")


def application(arguments: dict[str, Any]) -> serve.Application:
    """What an `import_path` names: `args` are options of `headrace serve`, with underscores. Raises OptionError."""
    known = {option.name for option in options_of(ServeOptions)}
    for name in arguments:
        if name not in known:
            raise OptionError(f"{name}: there is no such option")
        if name in _SERVES_OWN:
            raise OptionError(f"{name}: is for Ray Serve to say here")
        if name in _NEEDS_A_PROCESS:
            raise OptionError(f"{name}: cannot be had here, only from `headrace serve --ray`")
    options = read(ServeOptions, Namespace(**arguments), {})
    wish = wish_of(options)
    engine = deployment.engine(options, wish, has_cards=options.device == "cuda")
    return serve.deployment(
        serve.ingress()(_Ingress),
        name=NAME,
        max_ongoing_requests=deployment.at_once(options) * wish.most,
        graceful_shutdown_timeout_s=options.drain_timeout,
        ray_actor_options={"num_cpus": 0},
    ).bind(msgspec.json.encode(options), engine)


class _Ingress:
    """Serve makes it where it is to run, and then asks it for the app."""

    def __init__(self, options: bytes, handle: Any) -> None:
        self._options = msgspec.json.decode(options, type=ServeOptions)
        self._handle = handle

    def __serve_build_asgi_app__(self) -> object:
        options, metrics, series = self._options, Metrics(vllm_names=self._options.metrics_compat), ReplicaSeries()
        metrics.replicas(series)
        listener = ClusterListener(
            on_end=metrics.sequence_ended,
            on_census=lambda census: metrics.census(series.take(census)),
            on_move=metrics.request_moved,
        )
        served = Served(self._handle, serve.get_replica_context().app_name)
        engine = ClusterEngine(served, options, options.max_queue, listener)
        return create_app(app_options(options), engine, metrics, lambda card: load_text(card, engine))
