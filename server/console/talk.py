"""A model in the terminal: the engine, the text tools and one answer at a time."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from model.batch import Sampling
from server.config import Count, EngineOptions
from server.console.running import EngineFailed, running
from server.engine.client import EngineClient
from server.engine.messages import ModelCard
from server.generator import GenerationRequest
from server.text_tools import TextTools, load_text


class TalkOptions(EngineOptions, frozen=True, kw_only=True):
    """How to speak with a model, beside what it is started with."""

    max_tokens: Annotated[Count | None, Meta(description="tokens per answer; unset: what the context leaves")] = None
    temperature: Annotated[
        float, Meta(ge=0, le=2, description="0 takes the likeliest token, 1 the model's own odds")
    ] = 0.0
    top_p: Annotated[
        float, Meta(gt=0, le=1, description="draw from the likeliest tokens of this joint probability")
    ] = 1.0
    top_k: Annotated[int, Meta(ge=0, description="draw from so many likeliest tokens; 0: from all")] = 0
    repetition_penalty: Annotated[float, Meta(gt=0, le=2, description="above 1 discourages repetition")] = 1.0
    seed: Annotated[int | None, Meta(description="makes drawn answers repeatable; unset: another one each time")] = None
    system: Annotated[str | None, Meta(description="the system message of a chat; unset: the model's own")] = None


@dataclass(frozen=True, slots=True)
class Talk:
    """What `opened` gives."""

    options: TalkOptions
    engine: EngineClient
    tools: TextTools

    async def answer(self, prompt: list[int], source: str) -> AsyncGenerator[str]:
        """The pieces of one answer. Leaving the iteration early cancels it."""
        options = self.options
        sampling = Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            repetition_penalty=options.repetition_penalty,
            seed=secrets.randbits(63) if options.seed is None else options.seed,
        )
        request = GenerationRequest(prompts=[prompt], source=source, max_tokens=options.max_tokens, sampling=sampling)
        generation = self.tools.generator.start(request)
        try:
            async for piece in generation:
                yield piece.text
        finally:
            generation.close()


@asynccontextmanager
async def opened(options: TalkOptions) -> AsyncIterator[Talk]:
    """Starts the engine with a progress bar and ends it. Raises EngineFailed."""
    async with running(options, max_queue=1) as engine:
        assert engine.card is not None, "it runs"
        yield Talk(options, engine, await _load_text(engine.card, engine))


async def _load_text(card: ModelCard, engine: EngineClient) -> TextTools:
    try:
        return await asyncio.to_thread(load_text, card, engine)
    except ValueError as error:
        raise EngineFailed(str(error)) from error
