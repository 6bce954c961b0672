"""How the server takes leave: unready at once, then closed to new requests, then done with the old ones."""

import asyncio
import math
import time

import uvicorn

from server.api.service import Service
from server.errors import ServerDraining
from server.logs import Log

_FLUSH_S = 5.0  # for readers to take what is left of answers that the engine has finished

log = Log(__name__)


class Departure:
    """Ends a server by steps, once; a second wish to leave ends it at once."""

    def __init__(self, server: uvicorn.Server, service: Service, *, delay_s: float, timeout_s: float) -> None:
        """New requests are taken for `delay_s` more, so that load balancers can see the server unready and turn away;
        from then on, running ones have `timeout_s`.
        """
        self.is_hasty = False  # it was told to leave at once
        self._server = server
        self._service = service
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._leaving: asyncio.Task[None] | None = None

    def begin(self, *, is_interactive: bool) -> None:
        """Of an interactive server no load balancer knows, and of one that is still loading it expects nothing."""
        if self._leaving is not None:
            self._hurry()
            return
        has_callers = self._service.engine.is_up and not is_interactive
        self._leaving = asyncio.create_task(self._leave(self._delay_s if has_callers else 0.0))

    async def _leave(self, delay_s: float) -> None:
        engine = self._service.engine
        self._service.leaving = True
        log.info("leaving", delay_s=delay_s, timeout_s=self._timeout_s, running=engine.live)
        await asyncio.sleep(delay_s)
        self._service.draining = True
        deadline = time.monotonic() + self._timeout_s
        try:
            await asyncio.wait_for(self._finish(), self._timeout_s)
        except TimeoutError:
            log.warning("leaving requests unfinished", running=engine.live)
            engine.fail_all(ServerDraining("The server is shutting down and leaves this request unfinished."))
        self.close(max(deadline - time.monotonic(), _FLUSH_S))

    async def _finish(self) -> None:
        """Readers that have lost their stream may come back to it until the last."""
        await self._service.engine.idle()
        await self._service.streams.settled()

    def _hurry(self) -> None:
        """Without waiting for anybody."""
        assert self._leaving is not None
        self.is_hasty = True
        self._leaving.cancel()
        self._service.engine.fail_all(ServerDraining("The server is shutting down at once."))
        self._service.engine.kill()
        self._server.force_exit = True
        self.close(0.0)

    def close(self, grace_s: float = _FLUSH_S) -> None:
        """Lets uvicorn end, which stops listening first: until now the port was open, to refuse in words."""
        self._server.config.timeout_graceful_shutdown = math.ceil(grace_s)
        self._server.should_exit = True
