"""A Ray cluster, joined or started, and replicas in it that come and go with this process."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from server.config import ServeOptions
from server.scale_out import deployment
from server.scale_out.engine import Census, ClusterError
from server.scale_out.messages import Description
from server.scale_out.served import Served, line
from server.scale_out.wish import Wish

APPLICATION = "headrace"

_LOOK_EVERY_S = 0.2
_HOPELESS = ("DEPLOY_FAILED", "UNHEALTHY")
_ERRORS = (ConnectionError, RayError, RayServeException, RuntimeError, ValueError)


class OwnCluster:
    """See `Cluster`. Ray itself it ends only where it has started it."""

    def __init__(self, options: ServeOptions, wish: Wish) -> None:
        self._options = options
        self._wish = wish
        self._served: Served | None = None
        self._working: asyncio.Task[None] | None = None  # in a thread, which nobody can cancel
        self._is_over = threading.Event()

    async def start(self) -> Description:
        try:
            await self._work(_join)
        except _ERRORS as error:
            raise ClusterError(f"--ray: {line(error)}") from None
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # Ray's own handler, before it, prints stacks
        await self.restart()
        await self._work(self._wait_for_a_replica)
        assert self._served is not None, "deployed"
        return await self._served.start()

    def generate(self, submit: bytes) -> AsyncGenerator[bytes, None]:
        assert self._served is not None, "deployed"
        return self._served.generate(submit)

    def begun(self, sequence: int) -> None:
        assert self._served is not None, "deployed"
        self._served.begun(sequence)

    async def census(self) -> Census:
        assert self._served is not None, "deployed"
        return await self._served.census()

    async def restart(self) -> None:
        try:
            await self._work(self._deploy)
        except _ERRORS as error:
            raise ClusterError(f"--ray: {line(error)}") from None

    async def stop(self) -> None:
        self._is_over.set()
        if self._working is not None:
            with contextlib.suppress(ClusterError, *_ERRORS):  # whoever waited for it has heard
                await self._working
        await asyncio.to_thread(_leave)

    async def _work(self, what: Callable[[], None]) -> None:
        self._working = asyncio.create_task(asyncio.to_thread(what))
        await asyncio.shield(self._working)

    def _deploy(self) -> None:
        has_cards = bool(ray.cluster_resources().get("GPU"))
        application = deployment.engine(self._options, self._wish, has_cards=has_cards)
        target = serve.RunTarget(application, name=APPLICATION, route_prefix=None)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        self._served = self._served or Served(handle, APPLICATION)

    def _wait_for_a_replica(self) -> None:
        """Raises ClusterError where there will be none."""
        while not self._is_over.wait(_LOOK_EVERY_S):
            status = serve.status().applications[APPLICATION]
            if status.status in _HOPELESS:
                raise ClusterError(f"--ray: no replica can be started: {_reason(status)}")
            if status.deployments[deployment.NAME].replica_states.get("RUNNING"):
                return


def _join() -> None:
    """The cluster that RAY_ADDRESS names or this machine belongs to; else a new one of this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it would tell its makers
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        ray.init(address or "auto", namespace=APPLICATION, log_to_driver=False, logging_level="error")
    except ConnectionError:
        if address:
            raise
        ray.init("local", namespace=APPLICATION, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(proxy_location="Disabled")


def _reason(status: Any) -> str:
    """What a replica itself says, within the pages that Serve makes of it; else what Serve says."""
    message = str(status.deployments[deployment.NAME].message)
    said = re.findall(r"EngineGone: (.+)", message)
    return said[-1] if said else message.strip() or str(status.message)


def _leave() -> None:
    if ray.is_initialized():
        serve.delete(APPLICATION)
        ray.shutdown()
