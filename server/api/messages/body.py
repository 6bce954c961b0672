"""What a request to Anthropic's endpoints may hold, and the conversation that it means."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, JsonValue, Tag
from pydantic.json_schema import SkipJsonSchema

from server.api.chat_body import ChatBody
from server.api.conversation import Message
from server.api.refusals import LISTS, OTHER, STRING, custom
from server.api.schemas import INT64_MAX, StopStrings, Strict, Unsupported, unset
from server.api.variants import Other, by_type


class Cached(Strict):
    """What may be marked for caching; every prompt is cached here, marked or not."""

    no_effect = frozenset({"cache_control"})

    cache_control: dict[str, JsonValue] | None = None


class TextBlock(Cached):
    no_effect = Cached.no_effect | {"citations"}

    type: Literal["text"]
    text: str
    """Blocks are joined by line breaks."""
    citations: list[JsonValue] | None = None


Texts = Annotated[list[TextBlock], Field(min_length=1, max_length=256, fail_fast=True)]
Block = Annotated[
    Annotated[TextBlock, Tag("~text")] | Annotated[Other, Tag(OTHER), SkipJsonSchema()],
    Discriminator(by_type({"text"}, "text")),
]
Blocks = Annotated[list[Block], Field(min_length=1, max_length=256, fail_fast=True)]


class Turn(Strict):
    role: Literal["user", "assistant", "system"]
    """Who speaks."""
    content: Annotated[str, Tag(STRING)] | Annotated[Blocks, Tag(LISTS)]
    """Text, or blocks."""


def _refuse_thinking(kind: str) -> str:
    if kind != "disabled":
        raise custom("unsupported_value", "Unsupported value: 'thinking' can only be disabled.")
    return kind


class Thinking(Strict):
    type: Annotated[Literal["disabled", "enabled", "adaptive"], AfterValidator(_refuse_thinking)]
    """Only `disabled` is accepted."""


class OutputFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, JsonValue] = Field(alias="schema")
    """The JSON Schema that the answer satisfies."""


class OutputConfig(Strict):
    effort: Unsupported = None
    format: OutputFormat | None = None
    """What form the answer has."""

    def for_chat(self) -> dict[str, Any] | None:
        if self.format is None:
            return None
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.format.schema_}}


class CountBody(Strict):
    """What decides how long a prompt is. A field that is null counts as absent."""

    no_effect = frozenset({"cache_control"})

    model: str | None = None
    """The id that /v1/models tells. Without it, or with a name that begins with `claude-`, the model that is served."""
    messages: Annotated[list[Turn], Field(min_length=1, max_length=2048, fail_fast=True)]
    """The conversation so far; the answer is what the assistant says next."""
    system: Annotated[str, Tag(STRING)] | Annotated[Texts, Tag(LISTS)] | None = None
    """What stands before the conversation as the system's message."""
    tools: Unsupported = None
    tool_choice: Unsupported = None
    thinking: Thinking | None = None
    """Whether to think before the answer."""
    output_config: OutputConfig | None = None
    """What form the answer has."""
    cache_control: dict[str, JsonValue] | None = None
    context_management: Unsupported = None
    mcp_servers: Unsupported = None

    def as_chat(self) -> ChatBody:
        """The same request to the endpoint that all conversations go through."""
        return ChatBody(**{name: value for name, value in self._fields().items() if value is not None})

    def _fields(self) -> dict[str, Any]:
        # Clients written for Anthropic's models name one of them, whoever serves.
        is_theirs = self.model is not None and self.model.startswith("claude-")
        return {
            "model": None if is_theirs else self.model,
            "messages": list(self._conversation()),
            "response_format": self.output_config and self.output_config.for_chat(),
        }

    def _conversation(self) -> Iterator[Message]:
        if self.system is not None:
            yield Message(role="system", content=_plain(self.system))
        for turn in self.messages:
            yield Message(role=turn.role, content=_plain(turn.content))


class MessagesBody(CountBody):
    no_effect = CountBody.no_effect | {"metadata", "service_tier"}

    max_tokens: Annotated[int, Field(ge=1)]
    """Tokens that the answer may have."""
    stop_sequences: StopStrings | None = unset([])
    """Strings of 1 to 256 characters before which the answer ends."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = unset(1.0)
    """0 takes the likeliest token every time; 1 draws by the model's own probabilities."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = unset(1.0)
    """Draw among the fewest of the likeliest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = unset(0)
    """Draw among this many of the likeliest tokens only; 0 keeps every token."""
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    """The same request with the same seed has the same answer; drawn by the server where there is none."""
    stream: bool | None = unset(False)
    """Send the answer as typed server-sent events while it comes about."""
    container: Unsupported = None
    diagnostics: Unsupported = None
    inference_geo: Unsupported = None
    speed: Unsupported = None
    user_profile_id: Unsupported = None
    workspace_id: Unsupported = None
    metadata: dict[str, JsonValue] | None = None
    service_tier: str | None = None

    def _fields(self) -> dict[str, Any]:
        return super()._fields() | {
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "stream": self.stream,
        }


def _plain(content: str | list[Any]) -> str:
    """Blocks are joined by line breaks, as the parts of chat messages are."""
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
