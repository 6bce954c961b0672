"""What a request for a response may hold, and the conversation that it means."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, JsonValue, Tag, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from server.api.chat_body import ChatBody, Effort
from server.api.refusals import LISTS, OBJECT, OTHER, STRING, custom
from server.api.responses.input import Items, Turn, turns
from server.api.schemas import INT64_MAX, StreamOptions, Strict, Unsupported, unset
from server.api.tools import ToolName
from server.api.variants import Other, by_type


class ResponsesTool(Strict):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    """By which it is called."""
    description: str | None = None
    """What it does and when to call it."""
    parameters: dict[str, JsonValue] | None = None
    """The JSON Schema of its arguments."""
    strict: bool | None = None
    """Arguments satisfy their schema."""

    def for_chat(self) -> dict[str, Any]:
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


Tool = Annotated[
    Annotated[ResponsesTool, Tag("~function")] | Annotated[Other, Tag(OTHER), SkipJsonSchema()],
    Discriminator(by_type({"function"}, "function")),
]


class ResponsesToolName(Strict):
    type: Literal["function"]
    name: ToolName
    """Of the function that is to be called."""


class Format(Strict):
    no_effect = frozenset({"name", "description"})

    type: Literal["text", "json_object", "json_schema"]
    """What form the answer has."""
    name: str | None = None
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    """What the answer follows, whatever `strict` says; only with `json_schema`."""
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        fields = self.model_dump(by_alias=True, exclude_none=True, include={"schema_", "strict"})
        return {"type": self.type, "json_schema": fields if self.type == "json_schema" or fields else None}


class TextOptions(Strict):
    no_effect = frozenset({"verbosity"})

    format: Format | None = None
    """What form the answer has."""
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Strict):
    no_effect = frozenset({"context", "generate_summary", "mode", "summary"})

    effort: Effort | None = None
    """How much to think before answering, for models whose chat template knows of it."""
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
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = unset([])
    """Functions that the model may call."""
    tool_choice: (
        Annotated[Literal["none", "auto", "required"], Tag(STRING)] | Annotated[ResponsesToolName, Tag(OBJECT)] | None
    ) = unset("auto")
    """Whether a function is called: as the model will, never, at least one, or the one named."""
    parallel_tool_calls: bool | None = unset(True)
    """Whether one answer may call more than one function."""
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
            "tools": [tool.for_chat() for tool in self.tools or [] if isinstance(tool, ResponsesTool)] or None,
            "tool_choice": self._tool_choice(),
            "reasoning_effort": self.reasoning and self.reasoning.effort,
            "parallel_tool_calls": self.parallel_tool_calls,
            "stream": self.stream,
        }
        return ChatBody(**{name: value for name, value in fields.items() if value is not None})

    def _messages(self) -> Iterator[Turn]:
        if self.instructions is not None:
            yield {"role": "system", "content": self.instructions}
        if isinstance(self.input, str):
            yield {"role": "user", "content": self.input}
        else:
            yield from turns(self.input)

    def _tool_choice(self) -> JsonValue:
        if isinstance(self.tool_choice, ResponsesToolName):
            return {"type": "function", "function": {"name": self.tool_choice.name}}
        return None if self.tool_choice == "auto" else self.tool_choice  # some send it without tools
