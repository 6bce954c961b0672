"""POST /v1/chat/completions: a conversation in, the assistant's next message out."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, Field, JsonValue, Tag, model_validator

from server.api.body import read_body
from server.api.choices import choices_of, described, ids_field
from server.api.exchange import Answer, Job, Reply
from server.api.recording import recorded
from server.api.refusals import LISTS, STRING, custom
from server.api.schemas import GenerationBody, Strict, Unsupported, ignored
from server.api.service import Service, service_of
from server.api.sse import Chunks, Envelope, json_text, to_json
from server.errors import BadRequest
from server.generator import GenerationRequest, Piece, TokenText, Usage

router = APIRouter()


class TextPart(Strict):
    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=256, fail_fast=True)]


class Message(Strict):
    """One turn. What OpenAI's clients echo of an answer may stand there as null."""

    no_effect = frozenset({"name"})

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Tag(STRING)] | Annotated[Parts, Tag(LISTS)]
    name: str | None = None
    refusal: Unsupported = None
    annotations: Unsupported = None
    audio: Unsupported = None
    tool_calls: Unsupported = None
    tool_call_id: Unsupported = None
    function_call: Unsupported = None
    reasoning: Unsupported = None
    reasoning_content: Unsupported = None

    def for_template(self) -> dict[str, object]:
        """As chat templates know it: "developer" is OpenAI's later name for "system"."""
        role = "system" if self.role == "developer" else self.role
        content = self.content if isinstance(self.content, str) else [part.model_dump() for part in self.content]
        return {"role": role, "content": content}


def _only_text(kind: str) -> str:
    if kind != "text":
        raise custom("unsupported_value", f"Unsupported value: response_format.type '{kind}' is not supported yet.")
    return kind


class ResponseFormat(Strict):
    type: Annotated[Literal["text", "json_object", "json_schema"], AfterValidator(_only_text)]
    json_schema: Unsupported = None


class ChatBody(GenerationBody):
    no_effect = GenerationBody.no_effect | {
        "metadata",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
    }

    messages: Annotated[list[Message], Field(min_length=1, max_length=2048, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Unsupported = None
    tool_choice: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    web_search_options: Unsupported = None
    reasoning_effort: Unsupported = None
    metadata: dict[str, str] | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    prediction: dict[str, JsonValue] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    verbosity: str | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and self.max_tokens != self.max_completion_tokens:
            message = "Invalid 'max_tokens': differs from 'max_completion_tokens', which means the same."
            raise BadRequest(message, param="max_tokens", code="invalid_value")
        if self.top_logprobs is not None and not self.logprobs:
            message = "Invalid 'top_logprobs': only allowed when 'logprobs' is true."
            raise BadRequest(message, param="top_logprobs", code="invalid_value")
        return self

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens


@dataclass(frozen=True, slots=True)
class Occasion:
    """What a wording needs to know beside the body."""

    model: str  # its name in the API
    fingerprint: str
    prompt_tokens: int


Wording = Callable[[Occasion], Reply]


class ChatReply:
    def __init__(self, body: ChatBody, occasion: Occasion) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self._envelope = Envelope.new("chatcmpl", kind, occasion.model, occasion.fingerprint)
        self._chunks = Chunks(self._envelope, wants_usage=body.wants_usage_event)
        self._choices = body.choices_per_prompt
        self._has_logprobs = bool(body.logprobs)
        self._has_ids = bool(body.return_token_ids)

    def opening(self) -> bytes:
        role = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return b"".join(self._chunks.around(role % index) for index in range(self._choices))

    def event(self, piece: Piece) -> bytes:
        logprobs = to_json(_logprobs(piece.tokens)) if self._has_logprobs and piece.tokens else b"null"
        ids = ids_field(piece.tokens) if self._has_ids and piece.tokens else b""
        events = b""
        if piece.text or logprobs != b"null" or ids:
            head = b'{"index":%d,"delta":{"content":' % piece.index + json_text(piece.text)
            events = self._chunks.around(head + b'},"logprobs":' + logprobs + ids + b',"finish_reason":null}')
        if piece.finish_reason is not None:
            end = (piece.index, piece.finish_reason.encode())
            events += self._chunks.around(b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b"}' % end)
        return events

    def closing(self, usage: Usage) -> bytes:
        return self._chunks.closing(usage)

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        choices = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": _logprobs(choice.tokens) if self._has_logprobs else None,
                "finish_reason": choice.finish_reason,
                **(choice.ids if self._has_ids else {}),
            }
            for choice in choices_of(pieces)
        ]
        return to_json(self._envelope.around(choices, usage))


def _logprobs(tokens: list[TokenText]) -> dict[str, Any]:
    return {"content": described(tokens), "refusal": None}


async def prepare(body: ChatBody, service: Service, wording: Wording) -> Job:
    """The one way from a conversation to what generates its next message, for every endpoint that takes one."""
    model = await service.generating_model()
    model.check_name(body.model)
    body.check_vocabulary(model.card.vocab_size)
    prompt = await model.tools.prompts.chat([message.for_template() for message in body.messages])
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    request = GenerationRequest(
        prompts=[prompt],
        source="messages",
        n=body.choices_per_prompt,
        max_tokens=body.output_limit,
        limit_source="max_completion_tokens" if body.max_tokens is None else "max_tokens",
        stop=body.stop_strings,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        sampling=body.sampling(seed=secrets.randbits(62), top_logprobs=top_logprobs),
    )
    provenance = service.provenance(model)
    reply = wording(Occasion(model.name, provenance.fingerprint, len(prompt)))
    job = Job(model.tools.generator, request, reply, bool(body.stream), provenance)
    return recorded(job, "/v1/chat/completions", body, service.recorder)


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation, as a whole or as a stream of events."""
    service = service_of(request)
    body = await read_body(request, ChatBody, service.options)
    job = partial(prepare, body, service, partial(ChatReply, body))
    return Answer(service.metrics, service.streams, job, ignored(body))
