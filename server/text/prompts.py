"""How what a client sends becomes the token ids of a prompt."""

import asyncio
from dataclasses import replace

import msgspec

from server.errors import BadRequest
from server.text.chat_format import ChatFormat, chat_format
from server.text.chat_template import ChatTemplate
from server.text.conversation import ChatPrompt, Conversation, Turn
from server.text.infill import Infill, infill_prompt
from server.text.quoting import Quoting
from server.text.renderer import Render
from server.text.tokenizer import Tokenizer

_END = "\U0010fffd"  # after the text that an answer goes on with: a private character, of which the last one counts
_ENDING = 64  # characters


def _with_plain_content(turn: Turn) -> Turn:
    """Templates expect a string: text parts are joined by line breaks, as other servers do."""
    content = turn.get("content")
    if not isinstance(content, list):
        return turn
    return {**turn, "content": "\n".join(part["text"] for part in content)}


class Prompts:
    """Every way to a prompt; all raise BadRequest, naming the field, where there is none.

    Loading takes as long as loading the tokenizer: do it off the event loop.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._infill = Infill.of(tokenizer.added_tokens)
        self._quoting = Quoting(tokenizer.definition, tokenizer.added_tokens) if template is not None else None
        self._format = None if template is None else chat_format(template, tokenizer.added_tokens)

    @property
    def format(self) -> ChatFormat:
        """How the model is spoken to and read."""
        if self._format is None:
            raise _no_template()
        return self._format

    def knows(self, variable: str) -> bool:
        """Whether the template reads a variable, so that it has an influence."""
        return self._template is not None and variable in self._template.variables

    def mentions(self, name: str) -> bool:
        """Whether the template's source has a name, of a part of a turn for example."""
        return self._template is not None and name in self._template.source

    async def chat(self, turns: list[Turn]) -> list[int]:
        """Nothing but turns, up to where the assistant speaks next."""
        return (await self.conversation(Conversation(turns=turns))).ids

    async def conversation(self, conversation: Conversation) -> ChatPrompt:
        """A conversation, by the model's template.

        Special tokens come from the template only: a client's text stays text, whatever it reads like.
        """
        if self._template is None or self._quoting is None:
            raise _no_template()
        plain = replace(conversation, turns=[_with_plain_content(turn) for turn in conversation.turns])
        try:
            ids, ending = await self._encode_chat(self._template, self._quoting, self._order(plain))
        except UnicodeEncodeError as error:
            raise BadRequest(_surrogate(error), param="messages", code="invalid_value") from None
        if not ids:
            raise BadRequest("The messages come to no tokens at all.", param="messages", code="invalid_value")
        return ChatPrompt(self._checked(ids, "messages"), ending)

    async def said(self, text: str, param: str) -> list[int]:
        """What the assistant says where it says exactly this; the text of a special token is text."""
        assert self._quoting is not None, "there is no assistant without a chat template"
        ids = await self._quoting.encoder.encode(text, add_special_tokens=False)
        if not ids:
            raise BadRequest(f"Invalid '{param}': it comes to no tokens at all.", param=param, code="invalid_value")
        return self._checked(ids, param)

    async def text(self, prompt: str, suffix: str | None = None, *, param: str = "prompt") -> list[int]:
        """A text to continue; special tokens may be written in it, and BOS is put before it where the model has that.

        A text that begins with BOS already, such as a rendered chat, gets no second one. With `suffix`, the text to
        come stands between the two.
        """
        if suffix is not None:
            prompt = infill_prompt(self._infill, prompt, suffix)
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(_surrogate(error), param=param, code="invalid_value") from None
        ids = await self._tokenizer.encode(prompt, add_special_tokens=True)
        bos = self._tokenizer.bos_id
        if self._tokenizer.adds_bos and ids[:2] == [bos, bos]:
            return self._checked(ids[1:], param)
        if not ids and bos is not None:
            return [bos]
        if not ids:
            raise BadRequest(f"The {param} is empty.", param=param, code="invalid_value")
        return self._checked(ids, param)

    def _order(self, conversation: Conversation) -> Render:
        turns = self.format.turns(conversation)
        if conversation.is_continued:
            turns[-1] = turns[-1] | {"content": turns[-1]["content"] + _END}
        tools, variables = self.format.declared(conversation), dict(conversation.variables)
        return Render(turns, conversation.opens_answer, tools, variables, is_continued=conversation.is_continued)

    async def _encode_chat(self, template: ChatTemplate, quoting: Quoting, order: Render) -> tuple[list[int], str]:
        """The ids, and the end of the text that they are."""
        quoted = await asyncio.to_thread(quoting.quote, [order.messages, order.tools, order.variables])
        if quoted is None:
            rendered = _cut(await template.render(order), order)
            return await self._tokenizer.encode(rendered, add_special_tokens=False), rendered[-_ENDING:]
        messages, tools, variables = quoted.content
        order = msgspec.structs.replace(order, messages=messages, tools=tools, variables=variables)
        rendered = _cut(await template.render(order), order)
        restored = await asyncio.to_thread(quoting.restore, rendered, quoted)
        return await quoting.encoder.encode(restored, add_special_tokens=False), rendered[-_ENDING:]

    def _checked(self, ids: list[int], param: str) -> list[int]:
        if self._tokenizer.rowless_ids.isdisjoint(ids):
            return ids
        raise BadRequest(f"The {param} hold a token that the model does not have.", param=param, code="invalid_value")


def _cut(rendered: str, order: Render) -> str:
    """Without what the template puts after the text that the answer goes on with."""
    if not order.is_continued:
        return rendered
    text, end, _ = rendered.rpartition(_END)
    if not end:
        message = "The model's chat template does not let an answer go on with the last message."
        raise BadRequest(message, param="continue_final_message", code="invalid_value")
    return text


def _no_template() -> BadRequest:
    return BadRequest("The model has no chat template; use /v1/completions.", param="messages")


def _surrogate(error: UnicodeEncodeError) -> str:
    return f"The text is not valid Unicode: there is a lone surrogate at character {error.start}."
