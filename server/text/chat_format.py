"""How one model is spoken to and read: its ways of reasoning and of calling tools, and what marks them."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from server.text.call_syntax import CallSyntax
from server.text.chat_template import ChatTemplate
from server.text.conversation import Conversation, Turn
from server.text.reasoning import ReasoningFormat, reasoning_format
from server.text.tokenizer import AddedToken
from server.text.tool_format import ToolFormat, tool_format
from server.text.tool_prompt import with_tools_as_text


@dataclass(frozen=True, slots=True)
class ChatFormat:
    tools: ToolFormat
    reasoning: ReasoningFormat | None
    special: dict[str, int]  # the model's special tokens, which are no part of text unless they mark something

    def shown(self, syntax: CallSyntax | None) -> dict[int, bytes]:
        """The special tokens that are text to whoever reads an answer, with the calls of a syntax or without."""
        marks = [] if self.reasoning is None else [self.reasoning.opening, self.reasoning.closing]
        marks += [] if syntax is None else syntax.markers
        return {self.special[mark]: mark.encode() for mark in marks if mark in self.special}

    def turns(self, conversation: Conversation) -> list[Turn]:
        """As the template takes them; contents are plain text."""
        if self.tools.is_native:
            return [self._native(turn) for turn in conversation.turns]
        return with_tools_as_text(conversation.turns, conversation.tools, takes_system=self.tools.takes_system)

    def declared(self, conversation: Conversation) -> list[dict[str, object]] | None:
        """The tools that the template is to tell the model of."""
        if not self.tools.is_native or not conversation.tools:
            return None
        return [tool.declared for tool in conversation.tools]

    def _native(self, turn: Turn) -> Turn:
        turn = dict(turn)
        if "tool_call_id" in turn:
            turn["tool_call_id"] = self._id(turn["tool_call_id"])
        if "tool_calls" in turn:
            turn["tool_calls"] = [self._call(call) for call in turn["tool_calls"]]
        return turn

    def _call(self, call: Turn) -> Turn:
        arguments = call["function"]["arguments"]
        if self.tools.has_text_arguments:
            arguments = json.dumps(arguments, ensure_ascii=False)
        return call | {"id": self._id(call["id"]), "function": call["function"] | {"arguments": arguments}}

    def _id(self, id: str) -> str:
        """Mistral's templates take ids of nine letters and digits only; others are told by a digest of theirs."""
        if not self.tools.syntax.has_short_ids or re.fullmatch("[a-zA-Z0-9]{9}", id):
            return id
        return hashlib.sha256(id.encode()).hexdigest()[:9]


def chat_format(template: ChatTemplate, added_tokens: Sequence[AddedToken]) -> ChatFormat:
    """Lets the template render a few samples: call it off the event loop."""
    special = {token.content: token.id for token in added_tokens if token.special}
    reasoning = reasoning_format(template.source, {token.content for token in added_tokens})
    return ChatFormat(tool_format(template), reasoning, special)
