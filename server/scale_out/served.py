"""Replicas that Ray Serve runs, as those meet them who send them requests."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from server.scale_out.engine import Census, ClusterError, ReplicaLost
from server.scale_out.fleet import fleet_of
from server.scale_out.messages import Description


class Served:
    """See `Cluster`, for one who did not start them: whoever has, restarts and stops them."""

    def __init__(self, handle: Any, application: str) -> None:
        """`handle` is Serve's DeploymentHandle."""
        self._handle = handle
        self._application = application

    async def start(self) -> Description:
        try:
            return msgspec.msgpack.decode(await self._handle.describe.remote(), type=Description)
        except (RayError, RayServeException) as error:
            raise ClusterError(f"no replica answers: {line(error)}") from None

    async def generate(self, submit: bytes) -> AsyncGenerator[bytes, None]:
        messages = self._handle.options(stream=True).generate.remote(submit)
        try:
            async for message in messages:
                yield message
        except (RayError, RayServeException) as error:
            raise ReplicaLost(line(error)) from None
        finally:
            messages.cancel()

    def begun(self, sequence: int) -> None:
        fleet_of(self._application).begun(sequence)

    async def census(self) -> Census:
        return fleet_of(self._application).census()

    async def restart(self) -> None:
        raise ClusterError("the application is restarted by whoever deploys it")

    async def stop(self) -> None:
        """They stay."""


def line(error: Exception) -> str:
    """What Ray's words, which may be pages, come to: of a replica's own error the last line, else the first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if isinstance(error, RayTaskError) else 0]
