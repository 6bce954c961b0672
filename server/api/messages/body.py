"""What a request to Anthropic's endpoints may hold, and the conversation that it means."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema

from server.api.chat_body import ChatBody
from server.api.messages.input import AnthropicTurn, Cached, Texts, Turn, plain, turns
from server.api.refusals import LISTS, OTHER, STRING
from server.api.schemas import INT64_MAX, StopStrings, Strict, Unsupported, unset
from server.api.tools import MAX_TOOLS, ToolName
from server.api.variants import Other, by_type
from server.errors import BadRequest


class Thinking(Strict):
    no_effect = frozenset({"budget_tokens", "display"})

    type: Literal["disabled", "enabled", "adaptive"]
    """Whether a model that can do without thinks before it answers."""
    budget_tokens: int | None = None
    display: str | None = None


class AnthropicTool(Cached):
    """A function that the model may call."""

    no_effect = Cached.no_effect | {"eager_input_streaming", "input_examples"}

    type: Literal["custom"] | None = None
    name: ToolName
    """By which it is called."""
    description: str | None = None
    """What it does and when to call it."""
    input_schema: dict[str, JsonValue]
    """The JSON Schema of its input."""
    strict: bool | None = unset(False)
    """Refuse a schema that cannot be followed to the letter, instead of following what can be."""
    eager_input_streaming: bool | None = None
    input_examples: list[JsonValue] | None = None

    def for_chat(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "strict": self.strict}
        function = {key: value for key, value in function.items() if value is not None}
        return {"type": "function", "function": function | {"parameters": self.input_schema}}


Tool = Annotated[
    Annotated[AnthropicTool, Tag("~custom")] | Annotated[Other, Tag(OTHER), SkipJsonSchema()],
    Discriminator(by_type({"custom"}, "custom")),
]


class AnthropicToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    """As the model will, at least one tool, the tool of that name, or none."""
    name: ToolName | None = None
    """Of the tool, where `type` is `tool`."""
    disable_parallel_tool_use: bool | None = unset(False)
    """One answer uses one tool at most."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            message = "Invalid 'tool_choice': 'name' goes with the type 'tool', which needs it."
            raise BadRequest(message, param="tool_choice", code="invalid_value")
        return self

    def for_chat(self) -> JsonValue:
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return {"auto": None, "any": "required", "none": "none"}[self.type]


class OutputFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, JsonValue] = Field(alias="schema")
    """The JSON Schema that the answer satisfies."""


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """How much to think before answering, for models whose chat template knows of it."""
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
    messages: Annotated[list[AnthropicTurn], Field(min_length=1, max_length=2048, fail_fast=True)]
    """The conversation so far; the answer is what the assistant says next."""
    system: Annotated[str, Tag(STRING)] | Annotated[Texts, Tag(LISTS)] | None = None
    """What stands before the conversation as the system's message."""
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = unset([])
    """Functions that the model may call."""
    tool_choice: AnthropicToolChoice | None = unset({"type": "auto"})
    """Whether a tool is called."""
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
        choice = self.tool_choice
        return {
            "model": None if is_theirs else self.model,
            "messages": [*self._system(), *turns(self.messages)],
            "continue_final_message": self.messages[-1].role == "assistant" or None,
            "chat_template_kwargs": {"enable_thinking": True} if self.thinks else None,
            "reasoning_effort": "none" if self.thinks is False else self.output_config and self.output_config.effort,
            "tools": [tool.for_chat() for tool in self.tools or [] if isinstance(tool, AnthropicTool)] or None,
            "tool_choice": choice and choice.for_chat(),
            "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
            "response_format": self.output_config and self.output_config.for_chat(),
        }

    @property
    def thinks(self) -> bool | None:
        return None if self.thinking is None else self.thinking.type != "disabled"

    def _system(self) -> list[Turn]:
        return [] if self.system is None else [{"role": "system", "content": plain(self.system)}]


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
