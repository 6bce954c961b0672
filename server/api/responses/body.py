"""What a request for a response may hold, and the conversation that it means."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, JsonValue, Tag, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from server.api.chat_body import ChatBody
from server.api.conversation import Message
from server.api.refusals import LISTS, OTHER, STRING, custom
from server.api.schemas import INT64_MAX, StreamOptions, Strict, Unsupported, unset
from server.api.variants import Other, by_type


class InputText(Strict):
    """Text that was said to the model, or, as `output_text`, by it."""

    no_effect = frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})

    type: Literal["input_text", "output_text"]
    """`output_text` is what the model has said before."""
    text: str
    """Parts are joined by line breaks."""
    annotations: list[JsonValue] | None = None
    logprobs: list[JsonValue] | None = None
    prompt_cache_breakpoint: JsonValue = None


Texts = Annotated[list[InputText], Field(min_length=1, max_length=256, fail_fast=True)]
Content = Annotated[str, Tag(STRING)] | Annotated[Texts, Tag(LISTS)]
Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Strict):
    """One turn; a message of an earlier response may stand here as it came."""

    no_effect = frozenset({"id", "phase", "status"})

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    """`developer` means `system`."""
    content: Content
    """Text, or parts of text."""
    id: str | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    status: Status | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("~message")] | Annotated[Other, Tag(OTHER), SkipJsonSchema()],
    Discriminator(by_type({"message"}, "message")),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=2048, fail_fast=True)]


class Format(Strict):
    type: Literal["text", "json_object", "json_schema"]
    """What form the answer has."""
    name: str | None = None
    """Of the schema."""
    description: str | None = None
    """Of the schema."""
    schema_: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    """The JSON Schema that the answer satisfies."""
    strict: bool | None = None
    """Every answer satisfies its schema, whatever this says."""

    def for_chat(self) -> dict[str, Any]:
        if self.type != "json_schema":
            return {"type": self.type}
        parts = {"name": self.name, "description": self.description, "schema": self.schema_, "strict": self.strict}
        return {"type": self.type, "json_schema": {key: part for key, part in parts.items() if part is not None}}


class TextOptions(Strict):
    no_effect = frozenset({"verbosity"})

    format: Format | None = None
    """What form the answer has."""
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Strict):
    no_effect = frozenset({"context", "generate_summary", "mode", "summary"})

    effort: Unsupported = None
    context: str | None = None
    generate_summary: str | None = None
    mode: str | None = None
    summary: str | None = None


def _refuse_auto(truncation: str) -> str:
    if truncation == "auto":
        raise custom("unsupported_value", "Unsupported value: truncation 'auto'; what is too long is refused.")
    return truncation


def _refuse_background(background: bool) -> bool:
    if background:
        raise custom("unsupported_parameter", "Unsupported parameter: 'background': this server stores no responses.")
    return background


def _refuse_stored(value: object) -> None:
    if value is not None:
        message = "Unsupported parameter: this server stores no responses; send the whole conversation as 'input'."
        raise custom("unsupported_parameter", message)


Stored = Annotated[
    JsonValue,
    AfterValidator(_refuse_stored),
    WithJsonSchema({"type": "null", "description": "Not supported, since nothing is stored: null or absent."}),
]


class ResponsesBody(Strict):
    """A field that is null counts as absent."""

    no_effect = frozenset(
        {
            "parallel_tool_calls",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "service_tier",
            "store",
            "user",
        }
    )

    model: str | None = None
    """The id that /v1/models tells; without it, the model that is served."""
    input: Annotated[str, Tag(STRING)] | Annotated[Items, Tag(LISTS)]
    """What the user says, or the items of the conversation so far."""
    instructions: str | None = None
    """What stands before the conversation as the system's message."""
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that the answer may have; without it, as many as the context leaves."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = unset(1.0)
    """0 takes the likeliest token every time; 1 draws by the model's own probabilities."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = unset(1.0)
    """Draw among the fewest of the likeliest tokens that together have this probability."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Tell each token's log probability, and so many of the likeliest alternatives."""
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    """`message.output_text.logprobs` tells each token's log probability. Reasoning is never encrypted."""
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    """The same request with the same seed has the same answer; drawn by the server where there is none."""
    text: TextOptions | None = None
    """What form the answer has."""
    reasoning: Reasoning | None = None
    """How much to think before the answer."""
    tools: Unsupported = None
    tool_choice: Unsupported = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = unset(False)
    """Send the answer as typed server-sent events while it comes about."""
    stream_options: StreamOptions | None = None
    """Only where `stream` is true."""
    truncation: Annotated[Literal["auto", "disabled"], AfterValidator(_refuse_auto)] | None = unset("disabled")
    """Only `disabled` is accepted: a conversation that is too long is refused."""
    background: Annotated[bool, AfterValidator(_refuse_background)] | None = unset(False)
    """Only false is accepted."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """Repeated in the answer."""
    previous_response_id: Stored = None
    conversation: Stored = None
    prompt: Stored = None
    context_management: Unsupported = None
    max_tool_calls: Unsupported = None
    moderation: Unsupported = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, JsonValue] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None

    @property
    def wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or "message.output_text.logprobs" in (self.include or [])

    def as_chat(self) -> ChatBody:
        """The same request to the endpoint that all conversations go through."""
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": list(self._messages()),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "logprobs": self.wants_logprobs or None,
            "top_logprobs": self.top_logprobs,
            "response_format": self.text and self.text.format and self.text.format.for_chat(),
            "stream": self.stream,
        }
        return ChatBody(**{name: value for name, value in fields.items() if value is not None})

    def _messages(self) -> Iterator[Message]:
        if self.instructions is not None:
            yield Message(role="system", content=self.instructions)
        if isinstance(self.input, str):
            yield Message(role="user", content=self.input)
            return
        for item in self.input:
            assert isinstance(item, MessageItem), "the schema refuses others"
            yield Message(role=item.role, content=_plain(item.content))


def _plain(content: str | list[InputText]) -> str:
    """Parts are joined by line breaks, as those of chat messages are."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
