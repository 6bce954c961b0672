"""What every endpoint reaches: the options, the engine, and the text tools once the model's card is known."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from fastapi import Request

from server.api.resumable import Keeping, ResumableStreams
from server.api.sse import wall_time
from server.engine.adapters import Adapter, Adapters
from server.engine.interface import Engine
from server.engine.messages import ModelCard
from server.errors import EngineGone, ModelLoading, ModelNotFound, ServerDraining
from server.exactness.receipt import Provenance, text_digests
from server.exactness.recorder import Recorder
from server.metrics import Metrics
from server.quotas import UNLIMITED, Quota
from server.spans import Tracer
from server.text_tools import TextTools

VERSION = version("headrace")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """The part of the server's options that the HTTP side needs."""

    served_model_name: str | None = None  # None takes the model's own
    api_keys: tuple[str, ...] = ()  # without any and a file of them, everybody may ask
    api_key_file: Path | None = None
    quota: Quota = UNLIMITED  # of each key
    open_metrics: bool = False  # /metrics needs no key
    max_body_bytes: int = 8 * 2**20
    body_timeout_s: float | None = None
    request_timeout_s: float | None = None  # from the body's last byte to the answer's
    sse_keepalive_s: float = 0.0  # 0: no comments in quiet streams
    cors_origins: tuple[str, ...] = ()  # pages of these may ask; "*" is for all
    metrics_compat: bool = True  # vLLM's names beside ours
    lenient: bool = False  # unknown fields are reported in a header instead of refused
    adapter_folders: tuple[Path, ...] = ()  # within which adapters may be loaded at run time
    keeping: Keeping = field(default_factory=Keeping)  # of resumable streams


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model under the name that clients use."""

    name: str
    card: ModelCard
    tools: TextTools
    adapters: Adapters
    template_digest: str
    tokenizer_digest: str

    def adapter(self, asked: str | None) -> Adapter | None:
        """What the name asks to compute with beside the model's own weights. A request may leave the name out; one
        that is neither the model's nor an adapter's raises ModelNotFound.
        """
        if asked is None or asked == self.name:
            return None
        adapter = self.adapters.get(asked)
        if adapter is None:
            raise ModelNotFound(asked)
        return adapter


@dataclass(slots=True)
class Service:
    """One per app. `load_text` may take seconds and runs off the event loop, once."""

    options: AppOptions
    engine: Engine
    metrics: Metrics
    load_text: Callable[[ModelCard], TextTools]
    recorder: Recorder | None = None
    tracer: Tracer | None = None
    leaving: bool = False  # the server has been told to end: better ask another
    draining: bool = False  # and takes nothing new any more
    streams: ResumableStreams = field(init=False)
    created: int = field(default_factory=wall_time)
    _model: ServedModel | None = None
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.streams = ResumableStreams(self.options.keeping, self.metrics)

    async def model(self) -> ServedModel:
        """Raises ModelLoading before the model's header is read, EngineGone once the engine has given up."""
        async with self._loading:
            if self._model is None:
                self._model = await self._load()
        return self._model

    async def generating_model(self) -> ServedModel:
        """As `model`; raises also while the engine cannot compute yet or the server takes nothing new."""
        if self.draining:
            raise _leaving_error()
        self.check_engine()
        self.check_loaded()
        return await self.model()

    def check_alive(self) -> None:
        """Raises EngineGone once the engine has given up or gives no sign of life."""
        self.check_engine()
        if self.engine.is_hung:
            raise EngineGone("The engine gives no sign of life and is being replaced.")

    async def check_ready(self) -> None:
        """As `generating_model`; raises also while requests had better go elsewhere, although they are taken."""
        await self.generating_model()
        if self.leaving:
            raise _leaving_error()
        if not self.engine.is_up:
            raise EngineGone("The engine is restarting.")

    def name_of(self, card: ModelCard) -> str:
        """What clients call the model."""
        return self.options.served_model_name or card.name

    def check_engine(self) -> None:
        """Raises EngineGone once the engine has given up."""
        if self.engine.failure is not None:  # its reason may name paths: it is for the log, not for clients
            raise EngineGone("The engine is not running.", retry_after_s=10.0)

    def check_loaded(self) -> None:
        """Raises ModelLoading until the engine computes."""
        if self.engine.ready is None:
            raise self._loading_error()

    async def _load(self) -> ServedModel:
        self.check_engine()
        card = self.engine.card
        if card is None:
            raise self._loading_error()
        tools = await asyncio.to_thread(self.load_text, card)
        digests = await asyncio.to_thread(text_digests, card)
        return ServedModel(self.name_of(card), card, tools, self.engine.adapters, *digests)

    def _loading_error(self) -> ModelLoading:
        progress = self.engine.progress
        stage = f": {progress.stage}" if progress else ""
        if progress and progress.total:
            stage += f", {progress.done} of {progress.total} {progress.unit}"
        return ModelLoading(f"The model is loading{stage}.", retry_after_s=2.0)

    def provenance(self, model: ServedModel, adapter: Adapter | None = None) -> Provenance:
        """Of what is answered now: a new engine may run on other kernels."""
        ready = self.engine.ready
        assert ready is not None, "nothing is answered before"
        return Provenance(
            version=VERSION,
            weights=ready.weights,
            template=model.template_digest,
            tokenizer=model.tokenizer_digest,
            device=ready.device,
            dtype=ready.dtype,
            kv_dtype=ready.kv_dtype,
            kernels=ready.kernels,
            adapter=adapter.digest if adapter else None,
        )


def _leaving_error() -> ServerDraining:
    return ServerDraining("The server is shutting down and takes no new requests.", retry_after_s=5.0)


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
