"""What a chat completion's request may hold beside the conversation itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from server.api.conversation import Message, Messages, TemplateFields
from server.api.schemas import Unsupported, unset
from server.api.structure import BoundBody, ResponseFormat
from server.api.tools import NamedTool, ToolChoice
from server.errors import BadRequest
from server.grammar.grammars import Grammars
from server.text.conversation import Conversation

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatBody(BoundBody, TemplateFields):
    no_effect = BoundBody.no_effect | {
        "metadata",
        "modalities",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
    }

    messages: Messages
    """The conversation so far; the answer is what the assistant says next."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The later name of `max_tokens`. Without either, as many as the context leaves."""
    logprobs: bool | None = unset(False)
    """Tell each token's log probability, before penalties and temperature."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = unset(0)
    """How many of the likeliest alternatives to tell beside each token; only with `logprobs`."""
    response_format: ResponseFormat | None = None
    """What the answer follows; `structured_outputs` knows more forms."""
    tool_choice: ToolChoice | None = None
    """Whether tools may be called, have to be, or which one has to be; only with `tools`, and then `auto` if unset."""
    parallel_tool_calls: bool | None = unset(True)
    """Whether an answer may call tools more than once."""
    reasoning_effort: Effort | None = None
    """How much to think before answering, for models whose chat template knows of it."""
    include_reasoning: bool | None = unset(True)
    """Tell the reasoning, as `reasoning_content` and, under its newer name, `reasoning`."""
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    web_search_options: Unsupported = None
    metadata: dict[str, str] | None = None
    modalities: list[Literal["text"]] | None = None
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
        if self.structured_outputs and self.response_format and self.response_format.type != "text":
            message = "Invalid 'structured_outputs': 'response_format' asks for a form already."
            raise BadRequest(message, param="structured_outputs", code="invalid_value")
        if self.tools is None and self.tool_choice not in (None, "none"):
            message = "Invalid 'tool_choice': only allowed when 'tools' are declared."
            raise BadRequest(message, param="tool_choice", code="invalid_value")
        if self.named_tool is not None and self.named_tool not in [tool.function.name for tool in self.tools or []]:
            message = f"Invalid 'tool_choice': no tool '{self.named_tool}' is declared."
            raise BadRequest(message, param="tool_choice.function.name", code="invalid_value")
        return self

    @property
    def calls_tools(self) -> bool:
        """Whether the answer may call tools."""
        return self.tools is not None and self.tool_choice != "none"

    @property
    def named_tool(self) -> str | None:
        """The one that has to be called."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None

    def conversation(self, messages: Sequence[Message]) -> Conversation:
        conversation = super().conversation(messages)
        return conversation if self.calls_tools else replace(conversation, tools=[])

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens

    async def grammar(self, grammars: Grammars) -> str | None:
        asked = self.response_format and await self.response_format.grammar(grammars)
        return asked or await super().grammar(grammars)
