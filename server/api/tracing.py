"""What a span tells of a request to the model: what was asked, in the field's terms, and how it went.

The names are OpenTelemetry's for generative AI, as of version 1.41; what they lack begins with `headrace.`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from server.api.choices import Choice, choices_of
from server.api.exchange import Job, Reply
from server.api.schemas import GenerationBody
from server.api.sse import to_json
from server.generator import GenerationRequest, Piece, Usage
from server.metrics import EndReason
from server.spans import Attributes, Told, Tracer

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Query:
    """What a client asked, as its span tells it."""

    operation: Literal["chat", "text_completion", "embeddings", "decision"]  # the last is ours alone
    model: str | None  # as the client named it
    attributes: Attributes
    messages: Callable[[], Messages]  # with a role and parts, as the conventions' JSON schema has them

    @property
    def is_generation(self) -> bool:
        return self.operation in ("chat", "text_completion")


def generation(
    operation: Literal["chat", "text_completion"], body: GenerationBody, request: GenerationRequest
) -> Query:
    return Query(operation, body.model, _sampling(request), lambda: _messages(body))


def traced(job: Job, asked: Query, model: str, tracer: Tracer | None) -> Job:
    """The same job, which tells the tracer of itself when it ends, if there is one."""
    if tracer is None:
        return job
    reply = _TracedReply(job, asked, model, tracer)
    return replace(job, reply=reply, on_end=reply.end)


class _TracedReply:
    """A `Reply` that keeps what the span is to tell."""

    def __init__(self, job: Job, asked: Query, model: str, tracer: Tracer) -> None:
        self._job = job
        self._asked = asked
        self._name = f"{asked.operation} {model}"
        self._tracer = tracer
        self._parent = tracer.here()
        self._started = time.time_ns()
        self._first_piece: int | None = None
        self._pieces: list[Piece] = []
        self._reply: Reply = job.reply
        self._attributes: Attributes = {
            "gen_ai.operation.name": asked.operation,
            "gen_ai.provider.name": "headrace",
            "gen_ai.request.model": asked.model or model,
            "gen_ai.response.model": model,
            **asked.attributes,
        }
        if asked.is_generation:
            self._attributes["gen_ai.request.stream"] = job.is_streamed
        if tracer.has_content:
            self._attributes["gen_ai.input.messages"] = to_json(asked.messages()).decode()
        self.opening = job.reply.opening
        self.closing = job.reply.closing
        self.failure = job.reply.failure

    def event(self, piece: Piece, usage: Usage) -> bytes:
        self._first_piece = self._first_piece or time.time_ns()
        self._keep([piece])
        return self._reply.event(piece, usage)

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        self._keep(pieces)
        return self._reply.whole(pieces, usage)

    def _keep(self, pieces: list[Piece]) -> None:
        has_content = self._tracer.has_content
        self._pieces += pieces if has_content else [piece for piece in pieces if piece.finish_reason is not None]

    def end(self, request_id: str, reason: EndReason, usage: Usage) -> None:
        self._job.on_end(request_id, reason, usage)
        attributes = self._attributes | {
            "headrace.request.id": request_id,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        }
        if self._asked.is_generation:
            attributes |= self._answered(reason, usage)
        events = self._stages(usage, attributes)
        error = reason if reason in ("error", "disconnect") else None
        self._tracer.tell(Told(self._name, self._parent, self._started, attributes, events, error))

    def _answered(self, reason: EndReason, usage: Usage) -> Attributes:
        choices = choices_of(self._pieces)
        attributes: Attributes = {
            "gen_ai.response.finish_reasons": [choice.finish_reason or reason for choice in choices],
            "gen_ai.usage.output_tokens": usage.completion_tokens,
        }
        if self._first_piece is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = (self._first_piece - self._started) / 1e9
        if self._tracer.has_content:
            attributes["gen_ai.output.messages"] = _output(choices)
        return attributes

    def _stages(self, usage: Usage, attributes: Attributes) -> list[tuple[str, int]]:
        """Adds how long each stage took; gives when each began, which the end of the queue tells."""
        timings = usage.timings
        if timings is None:
            return []
        seconds = {"queue": timings.queue_s, "prefill": timings.prefill_s, "decode": timings.decode_s}
        attributes.update({f"headrace.{stage}.duration": duration for stage, duration in seconds.items()})
        prefill = self._started + round(timings.queue_s * 1e9)
        return [("headrace.prefill", prefill), ("headrace.decode", prefill + round(timings.prefill_s * 1e9))]


def _sampling(request: GenerationRequest) -> Attributes:
    sampling = request.sampling
    optional = {
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.top_k": sampling.top_k or None,
        "gen_ai.request.stop_sequences": list(request.stop) or None,
        "gen_ai.request.choice.count": request.n if request.n != 1 else None,
    }
    return {
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _messages(body: GenerationBody) -> Messages:
    asked = body.model_dump(mode="json", exclude_unset=True, by_alias=True)
    messages = asked.get("messages") or [{"role": "user", "content": asked["prompt"]}]
    return [{"role": message["role"], "parts": _parts(message)} for message in messages]


def user_messages(contents: list[Any]) -> Messages:
    """What was not asked as a conversation: texts or token ids."""
    return [{"role": "user", "parts": [{"type": "text", "content": content}]} for content in contents]


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content") or []
    if isinstance(content, list) and content and isinstance(content[0], dict):
        parts = [{"type": "text", "content": part["text"]} for part in content]
    else:  # a text, or a completion's texts or token ids
        parts = [{"type": "text", "content": content}] if content else []
    for call in message.get("tool_calls") or ():
        parts.append({"type": "tool_call", "id": call["id"], **call["function"]})
    return parts


def _output(choices: list[Choice]) -> str:
    said = [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": choice.text}],
            "finish_reason": choice.finish_reason,
        }
        for choice in choices
    ]
    return to_json(said).decode()
