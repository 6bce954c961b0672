"""How a stream outlives its connection: its events are numbered and kept, and its reader may come back for the rest.

A header asks for it, not a field: it says how an answer travels and nothing of the answer, and any client can add one.
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from server.api.connection import Client, ClientGone
from server.errors import BadRequest, HeadraceError, StreamNotFound, StreamTakenOver, shown
from server.metrics import Metrics

WISH = "x-headrace-resumable"
STREAM = "x-headrace-stream"  # tells the stream's id to clients whose library hides those of events

_PORTION = 64 * 2**10  # bytes that are sent at a time of what was kept

Work = Callable[[Client, Send], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """For how long and how much. The newest events of each stream are kept whatever their size."""

    grace_s: float = 60.0  # after its last reader has left or has read all
    stream_bytes: int = 8 * 2**20  # more than a connection can have under way: what is older was received
    total_bytes: int = 256 * 2**20
    unread_streams: int = 4096  # without a reader


def is_wished(scope: Scope) -> bool:
    """Whether a request's headers ask for a resumable stream."""
    value = Headers(scope=scope).get(WISH, "false")
    if value not in ("true", "false"):
        message = f"Invalid value for header '{WISH}': '{shown(value)}'. Supported values are: 'true' and 'false'."
        raise BadRequest(message, param=WISH, code="invalid_value")
    return value == "true"


def owner_of(scope: Scope) -> bytes | None:
    """Who may read a stream that this request begins: whoever has the same API key; None where none is needed."""
    digest: bytes | None = scope["state"]["account"].digest
    return digest


class KeptEvents:
    """The newest events of one stream, numbered from 1."""

    def __init__(self, stream: str) -> None:
        self.last = 0
        self.size = 0  # bytes
        self._stream = stream
        self._events: list[bytes] = []
        self._newest = 0  # of these, so many came together

    def add(self, body: bytes) -> None:
        """What an answer sends at a time: no event, one or several."""
        events = body.split(b"\n\n")[:-1]
        for number, event in enumerate(events, self.last + 1):
            self._events.append(b"id: %b:%d\n%b\n\n" % (self._stream.encode(), number, event))
            self.size += len(self._events[-1])
        self.last += len(events)
        self._newest = len(events)

    def drop_oldest(self) -> int:
        """Its size; 0 where only those are left that nobody has been sent yet."""
        if len(self._events) <= self._newest:
            return 0
        size = len(self._events.pop(0))
        self.size -= size
        return size

    def has_all_after(self, number: int) -> bool:
        return self.last - len(self._events) <= number

    def after(self, number: int) -> tuple[int, bytes]:
        """A portion of the events after `number`, and the number of its last."""
        place, portion, size = len(self._events) - (self.last - number), [], 0
        while place < len(self._events) and size < _PORTION:
            portion.append(self._events[place])
            size += len(portion[-1])
            place += 1
        return number + len(portion), b"".join(portion)


class ResumableStream:
    """One answer and its readers, of whom the newest is the one. The answer is made by a task of its own.

    It goes on at the reader's pace, and stands still without one: what the engine generates then waits, merged, where
    every slow reader's text waits.
    """

    def __init__(self, shelf: "ResumableStreams", owner: bytes | None, work: Work) -> None:
        self.id = secrets.token_hex(16)
        self.owner = owner
        self.events = KeptEvents(self.id)
        self.is_complete = False  # no event will follow
        self.is_told = False  # to its end, or what befell it
        self._shelf = shelf
        self._start: Message = {}
        self._reader: asyncio.Future[None] | None = None  # done when another takes over
        self._is_wanted = asyncio.Event()
        self._news = asyncio.Event()
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: HeadraceError | ClientGone | None = None
        self.task = asyncio.create_task(self._run(work))
        self.task.add_done_callback(lambda _: self._news.set())

    def give_up(self) -> None:
        """Ends the answer as if its client had left."""
        if not self._given_up.done():
            self._given_up.set_result(None)

    async def tell(self, client: Client, after: int, send: Send) -> None:
        """Sends all events after number `after`, as they come.

        Raises ClientGone when the client leaves, StreamTakenOver when another reader comes, and what befell the answer.
        """
        reader = self._attach()
        try:
            await client.while_there(Client(reader).while_there(self._send(reader, after, send)))
        except ClientGone:
            if reader.done():
                raise StreamTakenOver from None
            raise
        finally:
            if self._reader is reader:
                self._reader = None
                self._is_wanted.clear()
                self._shelf.leave(self)

    def _attach(self) -> asyncio.Future[None]:
        if self._reader is not None:
            self._reader.set_result(None)
        self._is_wanted.clear()
        self._shelf.take(self)
        self._reader = asyncio.get_running_loop().create_future()
        return self._reader

    async def _send(self, reader: asyncio.Future[None], position: int, send: Send) -> None:
        has_started = False
        while True:
            position, events = self.events.after(position)
            if events:
                if not has_started:
                    await send({**self._start})
                has_started = True
                await send({"type": "http.response.body", "body": events, "more_body": True})
            elif self.task.done():
                break
            else:
                self._news.clear()
                if not reader.done():
                    self._is_wanted.set()
                await self._news.wait()
        self.is_told = True
        if self._failure is not None:
            raise self._failure
        self.task.result()
        await send({"type": "http.response.body", "body": b""})

    async def _run(self, work: Work) -> None:
        try:
            await work(Client(self._given_up), self._put)
            self.is_complete = True
        except (HeadraceError, ClientGone) as error:
            self._failure = error

    async def _put(self, message: Message) -> None:
        """What the answer's task sends by. It waits for a reader that has been sent all before."""
        if message["type"] == "http.response.start":
            self._start = {**message, "headers": [*message["headers"], (STREAM.encode(), self.id.encode())]}
            return
        while not self._is_wanted.is_set():  # again: the reader that wanted it may have gone meanwhile
            await self._is_wanted.wait()
        self._is_wanted.clear()
        self._shelf.keep(self, message["body"])
        self._news.set()


class ResumableStreams:
    """All of them, from their beginning until they have been without a reader for the grace period."""

    def __init__(self, keeping: Keeping, metrics: Metrics) -> None:
        self._keeping = keeping
        self._metrics = metrics
        self._streams: dict[str, ResumableStream] = {}
        self._unread: dict[str, asyncio.TimerHandle] = {}  # those without a reader, the longest so first
        self._size = 0  # bytes
        self._change = asyncio.Event()

    def open(self, scope: Scope, work: Work) -> ResumableStream:
        """Begins `work`, which is given the client that it works for and what to send by."""
        stream = ResumableStream(self, owner_of(scope), work)
        self._streams[stream.id] = stream
        return stream

    def find(self, id: str, owner: bytes | None) -> ResumableStream:
        """Raises StreamNotFound, in the same words for an id that never was and for one that is another's."""
        stream = self._streams.get(id)
        if stream is None or stream.owner != owner:
            raise StreamNotFound("There is no such stream, or it has ended or was given up.")
        return stream

    def position(self, stream: ResumableStream, event: str | None) -> int:
        """The number of the last event that a reader has; None is for none. Raises BadRequest, StreamNotFound."""
        match = re.fullmatch(rf"{stream.id}:([1-9][0-9]{{0,14}})", event or "")
        number = int(match[1]) if match else 0
        if event is not None and not 1 <= number <= stream.events.last:
            message = f"Invalid header 'Last-Event-ID': '{shown(event)}' is no event that this stream has sent."
            raise BadRequest(message, param="Last-Event-ID", code="invalid_value")
        if not stream.events.has_all_after(number):
            raise StreamNotFound("The events that follow this one are no longer kept.")
        return number

    async def settled(self) -> None:
        """Returns when every stream was told to its end or given up."""
        while not all(stream.is_told for stream in self._streams.values()):
            self._change.clear()
            await self._change.wait()

    async def close(self) -> None:
        """Ends all."""
        streams = [*self._streams.values()]
        for stream in streams:
            self._forget(stream)
        if streams:
            await asyncio.wait([stream.task for stream in streams])

    def take(self, stream: ResumableStream) -> None:
        """The stream has a reader."""
        timer = self._unread.pop(stream.id, None)
        if timer is not None:
            timer.cancel()

    def leave(self, stream: ResumableStream) -> None:
        """The stream has a reader no more."""
        self._change.set()
        if stream.id not in self._streams:
            return
        if stream.events.last == 0:  # its client knows no id to come back with
            self._forget(stream)
            return
        timer = asyncio.get_running_loop().call_later(self._keeping.grace_s, self._abandon, stream)
        self._unread[stream.id] = timer
        if len(self._unread) > self._keeping.unread_streams and (unread := self._least_missed()) is not None:
            self._abandon(unread)

    def keep(self, stream: ResumableStream, body: bytes) -> None:
        """Adds events to a stream and makes room for them."""
        before = stream.events.size
        stream.events.add(body)
        self._size += stream.events.size - before
        while self._size > self._keeping.total_bytes and (unread := self._least_missed()) is not None:
            self._abandon(unread)
        while self._is_too_much(stream) and (freed := stream.events.drop_oldest()):
            self._size -= freed

    def _is_too_much(self, stream: ResumableStream) -> bool:
        return stream.events.size > self._keeping.stream_bytes or self._size > self._keeping.total_bytes

    def _least_missed(self) -> ResumableStream | None:
        """Of the streams without a reader, the first that was told to its end, else the first."""
        unread = [self._streams[id] for id in self._unread]
        return next((stream for stream in unread if stream.is_told), unread[0] if unread else None)

    def _abandon(self, stream: ResumableStream) -> None:
        if not stream.is_told:
            self._metrics.stream_abandoned()
        self._forget(stream)

    def _forget(self, stream: ResumableStream) -> None:
        self._change.set()
        self.take(stream)
        del self._streams[stream.id]
        self._size -= stream.events.size
        stream.give_up()
