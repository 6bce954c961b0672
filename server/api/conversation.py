"""What a conversation may hold: turn by turn, as OpenAI's clients send it."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from server.api.refusals import LISTS, STRING
from server.api.schemas import Strict, Unsupported


class TextPart(Strict):
    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=256, fail_fast=True)]


class Message(Strict):
    """One turn. What OpenAI's clients echo of an answer may stand there as null."""

    no_effect = frozenset({"name"})

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` means `system`."""
    content: Annotated[str, Tag(STRING)] | Annotated[Parts, Tag(LISTS)]
    """Text, or parts of text that are joined by line breaks."""
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
