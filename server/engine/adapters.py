"""Which adapters there are: under which names clients ask for them, and what every engine has to have read of them.

An adapter is known by the digest of its weights, from the order to the KV cache and the receipt. So a name that is
given away again never leads to what the one before it has left, and equal weights under two names are kept once.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from server.engine.messages import AdapterLoaded, AdapterRefused, DropAdapter, LoadAdapter, ToEngine
from server.errors import BadRequest, EngineGone, ModelNotFound
from server.logs import Log

MAX_ADAPTERS = 256  # names

log = Log(__name__)


class Refused(Exception):
    """An engine cannot use an adapter. The message is one line and names files without their folders."""


@dataclass(frozen=True, slots=True)
class Adapter:
    name: str  # the model's, in requests
    folder: Path
    digest: str


class Adapters:
    """Those that have a name, and those that live sequences still need. Belongs to one event loop."""

    def __init__(
        self, wanted: Mapping[str, Path], send: Callable[[ToEngine], None], is_in_use: Callable[[str], bool]
    ) -> None:
        """`wanted` are folders by name, without which no engine is started."""
        self._wanted = dict(wanted)
        self._send = send
        self._is_in_use = is_in_use
        self._named: dict[str, Adapter] = {}
        self._folders: dict[str, Path] = {}  # of what the engine has, by digest
        self._arriving: set[str] = set()  # names
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[str]] = {}  # that the engine owes

    @property
    def are_wanted(self) -> bool:
        """The next engine has some to read."""
        return bool(self._wanted or self._folders)

    def __contains__(self, digest: object) -> bool:
        return digest in self._folders

    @property
    def named(self) -> list[Adapter]:
        return list(self._named.values())

    def get(self, name: str) -> Adapter | None:
        return self._named.get(name)

    async def load(self, name: str, folder: Path) -> Adapter:
        """Has the engine read a folder beside its steps. Raises BadRequest, EngineGone."""
        if name in self._named or name in self._arriving:
            raise BadRequest("An adapter of this name is loaded: unload it first.", param="lora_name")
        if len(self._named) + len(self._arriving) >= MAX_ADAPTERS:
            raise BadRequest(f"There are {MAX_ADAPTERS} adapters: unload one first.", param="lora_name")
        self._arriving.add(name)
        try:
            return self._give(name, folder, await self._read(folder))
        except Refused as error:
            raise BadRequest(f"The adapter cannot be loaded: {error}.", param="lora_path") from None
        finally:
            self._arriving.discard(name)
            self.sweep()

    def unload(self, name: str) -> None:
        """Nobody can ask for it any more; sequences that have it go on to their end. Raises ModelNotFound."""
        if self._named.pop(name, None) is None:
            raise ModelNotFound(name, param="lora_name")
        log.info("adapter unloaded", name=name)
        self.sweep()

    def sweep(self) -> None:
        """Has the engine drop what has neither a name nor a sequence; not while it reads, for that may be the same."""
        if self._answers:
            return
        named = {adapter.digest for adapter in self._named.values()}
        for digest in [digest for digest in self._folders if digest not in named and not self._is_in_use(digest)]:
            del self._folders[digest]
            self._send(DropAdapter(digest))

    def hear(self, message: AdapterLoaded | AdapterRefused) -> None:
        answer = self._answers.get(message.id)
        if answer is None or answer.done():  # whoever asked has gone
            if isinstance(message, AdapterLoaded) and message.digest not in self and not self._answers:
                self._send(DropAdapter(message.digest))
            return
        if isinstance(message, AdapterLoaded):
            answer.set_result(message.digest)
        else:
            answer.set_exception(Refused(message.reason))

    def lose_engine(self) -> None:
        """Whoever waits for an answer gets none."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(EngineGone("The engine is restarting."))

    async def equip(self) -> None:
        """Has a new engine read all that the one before had, and what is wanted and was not read yet.

        Like the model itself, an adapter is what its files hold when an engine reads them; one that cannot be read
        any more is gone. Raises EngineGone; Refused where that befalls one that is wanted.
        """
        folders: dict[str, Path] = {}
        for adapter in self.named:
            if digest := await self._read_again(adapter.folder, adapter.digest, adapter.name):
                folders[digest] = adapter.folder
                self._named[adapter.name] = Adapter(adapter.name, adapter.folder, digest)
            else:
                del self._named[adapter.name]
        for digest, folder in self._folders.items():
            if digest not in folders and (found := await self._read_again(folder, digest, "")):
                folders[found] = folder
        self._folders = folders
        for name, folder in self._wanted.items():
            try:
                self._give(name, folder, await self._read(folder))
            except Refused as error:
                raise Refused(f"adapter {name}, {folder}: {error}") from None
        self._wanted = {}

    async def _read_again(self, folder: Path, before: str, name: str) -> str | None:
        try:
            digest = await self._read(folder)
        except Refused as error:
            log.error("adapter lost", name=name, folder=folder, reason=error)
            return None
        if digest != before:
            log.warning("adapter has changed", name=name, folder=folder, digest=digest)
        return digest

    def _give(self, name: str, folder: Path, digest: str) -> Adapter:
        self._folders[digest] = folder
        adapter = self._named[name] = Adapter(name, folder, digest)
        log.info("adapter loaded", name=name, folder=folder, digest=digest)
        return adapter

    async def _read(self, folder: Path) -> str:
        """Its digest, once the engine has it. No other task runs between the end of this and what its caller does."""
        id = next(self._ids)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answers[id] = answer
        self._send(LoadAdapter(id, str(folder)))
        try:
            return await answer
        finally:
            del self._answers[id]
