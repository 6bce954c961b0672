"""What a span is made of here, and who takes it: nothing of how spans travel."""

from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import ASGIApp

Attributes = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """A span that is over. Times are nanoseconds since the epoch; `events` are names with the time of each."""

    name: str
    parent: object
    started: int
    attributes: Attributes
    events: list[tuple[str, int]]
    error: str | None


class Tracer(Protocol):
    """Who makes spans of requests."""

    has_content: bool  # they tell what was asked and answered, too

    def around(self, app: ASGIApp) -> ASGIApp:
        """The app, with a span around each of its requests."""

    def here(self) -> object:
        """The span that the running request is in."""

    def tell(self, span: Told) -> None:
        """Sends one that is over."""
