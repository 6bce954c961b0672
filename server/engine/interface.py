"""What the HTTP side asks of whatever computes: one engine, or many."""

from pathlib import Path
from typing import Protocol

from server.engine.adapters import Adapter, Adapters
from server.engine.messages import ModelCard, Progress, Ready
from server.engine.streams import Order, TokenStream
from server.errors import HeadraceError


class Engine(Protocol):
    """Hands orders to what computes and hands out what comes of them. Belongs to one event loop."""

    adapters: Adapters

    @property
    def card(self) -> ModelCard | None:
        """Known once the checkpoint's header is read."""

    @property
    def ready(self) -> Ready | None:
        """Known once something has computed."""

    @property
    def progress(self) -> Progress | None:
        """The last news of a start."""

    @property
    def failure(self) -> str | None:
        """Why nothing computes and nothing will."""

    @property
    def is_up(self) -> bool:
        """Orders are taken now."""

    @property
    def is_hung(self) -> bool:
        """It has given no sign of life for too long."""

    @property
    def live(self) -> int:
        """Sequences that were submitted and have neither finished nor been cancelled."""

    @property
    def longest(self) -> int:
        """Tokens that one sequence can ever reach; not to be asked before it is ready."""

    async def start(self) -> None:
        """Begins to load and returns at once."""

    async def stop(self) -> None:
        """Ends it; streams that still run end with an error."""

    def kill(self) -> None:
        """As `stop`, at once."""

    def submit(self, orders: list[Order]) -> list[TokenStream]:
        """Queues all of them or raises ModelLoading, EngineGone, Overloaded: nothing is queued halfway."""

    async def load_adapter(self, name: str, folder: Path) -> Adapter:
        """Raises BadRequest, EngineGone."""

    async def idle(self) -> None:
        """Returns when no sequence is live."""

    def fail_all(self, error: HeadraceError) -> None:
        """Ends every live sequence: its reader gets what there is and then the error."""
