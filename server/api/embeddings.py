"""POST /v1/embeddings: texts in, a vector for each out."""

import asyncio
import base64
import struct
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Request, Response
from pydantic import Field, Tag

from model.batch import Reading
from server.api.body import read_body
from server.api.choices import choices_of
from server.api.exchange import Answer, Job, Unstreamed
from server.api.refusals import LISTS, NUMBERS, STRING, STRINGS
from server.api.schemas import MAX_TOKEN_IDS, Strict, TokenId, check_ids, ignored, unset
from server.api.service import ServedModel, Service, service_of
from server.api.sse import to_json
from server.api.tracing import Query, traced, user_messages
from server.errors import BadRequest
from server.generator import GenerationRequest, Piece, Usage

MAX_INPUTS = 2048  # OpenAI's

router = APIRouter()

TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True)]
Input = (
    Annotated[str, Tag(STRING)]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag(STRINGS)]
    | Annotated[TokenIds, Tag(NUMBERS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag(LISTS)]
)


class EmbeddingBody(Strict):
    no_effect = frozenset({"user"})

    model: str | None = None
    """The id that /v1/models tells; without it, the model that is served."""
    input: Annotated[Input, Field(union_mode="left_to_right")]
    """A text, token ids, or a list of up to 2048 of either: each has a vector of its own."""
    pooling: Literal["mean", "last"] | None = unset("mean")
    """Take the mean of the hidden states of all tokens, or the last token's."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """So many of the vector's first numbers, brought to length 1; without it, all."""
    encoding_format: Literal["float", "base64"] | None = unset("float")
    """Numbers, or the base64 of them in fp32, little-endian."""
    user: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The four forms of `input` as one. By the schema, all elements of a list are what its first one is."""
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]
        return cast("list[str | list[int]]", self.input)

    def reading(self, prompt: list[int]) -> Reading:
        return Reading(start=len(prompt) - 1 if self.pooling == "last" else 0, dimensions=self.dimensions)


class EmbeddingReply(Unstreamed):
    def __init__(self, model: str, *, is_base64: bool) -> None:
        self._model = model
        self._is_base64 = is_base64

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        vectors = [choice.findings[-1].vector for choice in choices_of(pieces)]
        data = [
            {"object": "embedding", "index": index, "embedding": self._shown(vector)}
            for index, vector in enumerate(vectors)
        ]
        counts = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
        return to_json({"object": "list", "data": data, "model": self._model, "usage": counts})

    def _shown(self, vector: bytes) -> str | tuple[float, ...]:
        return base64.b64encode(vector).decode() if self._is_base64 else struct.unpack(f"<{len(vector) // 4}f", vector)


async def _prepare(body: EmbeddingBody, service: Service) -> Job:
    model = await service.generating_model()
    adapter = model.adapter(body.model)
    if body.dimensions is not None and body.dimensions > model.card.dim:
        message = f"Invalid 'dimensions': integer above maximum value. The model has {model.card.dim}."
        raise BadRequest(message, param="dimensions", code="integer_above_max_value")
    prompts = await _encode(body, model)
    readings = [body.reading(prompt) for prompt in prompts]
    digest = adapter.digest if adapter else None
    request = GenerationRequest(prompts=prompts, source="input", max_tokens=0, readings=readings, adapter=digest)
    reply = EmbeddingReply((adapter or model).name, is_base64=body.encoding_format == "base64")
    job = Job(model.tools.generator, request, reply, False, service.provenance(model, adapter))
    return traced(job, _query(body), model.name, service.tracer)


def _query(body: EmbeddingBody) -> Query:
    told = {
        "gen_ai.request.encoding_formats": [body.encoding_format or "float"],
        "gen_ai.embeddings.dimension.count": body.dimensions,
    }
    attributes = {name: value for name, value in told.items() if value is not None}
    return Query("embeddings", body.model, attributes, lambda: user_messages(body.inputs))


async def _encode(body: EmbeddingBody, model: ServedModel) -> list[list[int]]:
    encoded = []
    for position, given in enumerate(body.inputs):
        path = "input" if given is body.input else f"input[{position}]"
        if isinstance(given, str):
            encoded.append(await model.tools.prompts.text(given, param=path))
            await asyncio.sleep(0)  # there may be two thousand, and others wait
        else:
            check_ids(given, model.card.vocab_size, path)
            encoded.append(given)
    return encoded


@router.post("/v1/embeddings")
async def create_embeddings(request: Request) -> Response:
    """A vector of length 1 for each input: the model's last hidden states, pooled."""
    service = service_of(request)
    body = await read_body(request, EmbeddingBody, service.options)
    return Answer(service, lambda: _prepare(body, service), ignored(body))
