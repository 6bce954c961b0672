"""GET /v1/streams/{id}: goes on with a resumable stream where its reader has lost it."""

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from starlette.types import Receive, Scope, Send

from server.api.connection import watching
from server.api.resumable import owner_of
from server.api.service import Service, service_of

router = APIRouter()


class Resumption(Response):
    """The events after the one that the reader has last."""

    def __init__(self, service: Service, id: str, last_event: str | None) -> None:
        self._service = service
        self._id = id
        self._last_event = last_event
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streams = self._service.streams
        stream = streams.find(self._id, owner_of(scope))
        position = streams.position(stream, self._last_event)
        if stream.is_complete and position == stream.events.last:
            await Response(status_code=204)(scope, receive, send)  # by which an EventSource knows to stop
            return
        scope["state"]["is_accepted"] = True
        self._service.metrics.stream_resumed()
        async with watching(receive) as client:
            await stream.tell(client, position, send)


@router.get("/v1/streams/{id}")
async def resume_stream(request: Request, id: str, last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """The events of a resumable stream after the one named by `Last-Event-ID`; without that header, all of them."""
    return Resumption(service_of(request), id, last_event_id)
