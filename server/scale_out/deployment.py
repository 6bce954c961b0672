"""The replicas as Ray Serve runs them: what each takes of a machine, how many there are, when one is ill."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from server.config import OptionError, ServeOptions
from server.scale_out.replica import Replica
from server.scale_out.wish import Wish

NAME = "Engine"

_HEALTH_CHECKS = 10  # in the time after which a silent engine is hung; Serve gives up a replica after three bad ones
_REPORT_EVERY_S = 1.0
_STARTS = 3  # of a replica that does not come up, until there is no hope


class _Deployed:
    """A Replica under the name that Serve has for it, which can be asked for where Serve runs it only."""

    async def __init__(self, options: bytes) -> None:  # type: ignore[misc]  # Serve awaits it
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(name, msgspec.json.decode(options, type=ServeOptions))
        await self._replica.start()

    async def describe(self) -> bytes:
        return await self._replica.describe()

    async def generate(self, submit: bytes) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(self._replica.generate(submit)) as messages:
            async for message in messages:
                yield message

    async def check_health(self) -> None:
        await self._replica.check_health()

    def record_routing_stats(self) -> dict[str, Any]:
        return self._replica.record_routing_stats()


def engine(options: ServeOptions, wish: Wish, *, has_cards: bool) -> serve.Application:
    """What to deploy. Raises OptionError."""
    return serve.deployment(
        _Deployed,
        name=NAME,
        num_replicas=wish.most if wish.is_fixed else None,
        autoscaling_config=None if wish.is_fixed else _autoscaling(options, wish),
        ray_actor_options=_takes(options, has_cards),
        max_ongoing_requests=at_once(options),
        health_check_period_s=options.watchdog / _HEALTH_CHECKS,
        health_check_timeout_s=options.watchdog,
        graceful_shutdown_timeout_s=options.drain_timeout,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=_STARTS,
        request_router_config=RequestRouterConfig(
            request_router_class="server.scale_out.router:PrefixRouter",
            request_routing_stats_period_s=_REPORT_EVERY_S,
        ),
    ).bind(msgspec.json.encode(options))


def at_once(options: ServeOptions) -> int:
    """Requests that one replica has in hand: what waits, waits in its engine, which knows priorities."""
    return options.max_sequences + options.max_queue


def _takes(options: ServeOptions, has_cards: bool) -> dict[str, float]:
    """Of the machine that it runs on."""
    if options.device == "cuda" or (options.device == "auto" and has_cards):
        return {"num_cpus": options.threads or 1, "num_gpus": options.tensor_parallel}
    for name, value in {"threads": options.threads, "kv-memory": options.kv_memory}.items():
        if value is None:
            raise OptionError(f"--{name}: has to be said with --ray, as replicas on CPUs share their machine")
    return {"num_cpus": options.threads or 1}


def _autoscaling(options: ServeOptions, wish: Wish) -> AutoscalingConfig:
    """A replica more where those there are have more than they compute side by side, so that requests wait."""
    return AutoscalingConfig(
        min_replicas=wish.least, max_replicas=wish.most, target_ongoing_requests=options.max_sequences
    )
