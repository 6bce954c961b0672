"""How questions reach a server: one cheap streaming client with a pool of connections, every failure put on record."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from server.bench.answer import Answer, error_message
from server.bench.connection import Address, Connection, Cut, Listener, NotHttp, Response
from server.bench.record import Failure, Record, Request


class ServerError(Exception):
    """A server cannot be benchmarked; the text says which and why, in one line."""


class Client:
    """Asks one server. As many connections as there are requests at once; an idle one is used again."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []

    async def stream(self, request: Request, on_first: Callable[[], None] = lambda: None) -> Record:
        """Sends a streaming completion and keeps its times. Never raises for what the server did: see `failure`.

        `on_first` is called when its first text is there.
        """
        record = Record(start=time.monotonic(), asked_tokens=request.output_tokens)
        answer = Answer(record, on_first)
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._exchange("POST", request.path, request.body, answer.feed)
        except (OSError, NotHttp) as error:
            if not answer.is_done:  # after [DONE] a server may close as it likes
                record.failure = record.failure or failure_of(error, self._timeout_s)
            return record
        if response.status == 200:
            answer.close()
        else:
            record.failure = Failure(f"http {response.status}", error_message(response.body))
        return record

    async def fetch(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of a plain answer. Raises ServerError for everything else."""
        what = f"{self.address.url}: {method} {path}"
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._exchange(method, path, b"" if body is None else msgspec.json.encode(body))
            if response.status != 200:
                raise ServerError(f"{what}: http {response.status}: {error_message(response.body)}")
            return msgspec.json.decode(response.body)
        except (OSError, NotHttp) as error:
            failure = failure_of(error, self._timeout_s)
            raise ServerError(f"{what}: {failure.kind}: {failure.message}") from error
        except msgspec.DecodeError as error:
            raise ServerError(f"{what}: the answer is no JSON: {error}") from error

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _exchange(self, method: str, path: str, body: bytes, listener: Listener | None = None) -> Response:
        request = self.address.request(method, path, body)
        while (connection := self._take_idle()) is not None:
            try:
                return await self._use(connection, request, listener)
            except Cut:
                if connection.has_answered:
                    raise
                # closed by the server while idle, as the request was on its way: no answer is lost with it
        return await self._use(await Connection.open(self.address), request, listener)

    async def _use(self, connection: Connection, request: bytes, listener: Listener | None) -> Response:
        try:
            response = await connection.exchange(request, listener)
        except BaseException:  # also cancelled: the rest of the answer must not meet the next request
            connection.close()
            raise
        if connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None


def failure_of(error: OSError | NotHttp, timeout_s: float) -> Failure:
    """Names the kind of a failure below HTTP."""
    match error:
        case TimeoutError():
            return Failure("timeout", f"no complete answer within {timeout_s:g} s")
        case ConnectionRefusedError():
            return Failure("refused", str(error))
        case Cut():
            return Failure("cut", str(error))
        case NotHttp():
            return Failure("not http", str(error))
        case _:
            return Failure("no connection", str(error))
