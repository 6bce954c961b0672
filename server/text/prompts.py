"""How what a client sends becomes the token ids of a prompt."""

import asyncio

from server.errors import BadRequest
from server.text.chat_template import ChatTemplate
from server.text.infill import Infill, infill_prompt
from server.text.quoting import Quoting
from server.text.tokenizer import Tokenizer


def _with_plain_content(message: dict[str, object]) -> dict[str, object]:
    """Templates expect a string: text parts are joined by line breaks, as other servers do."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}


class Prompts:
    """Every way to a prompt; all raise BadRequest, naming the field, where there is none.

    Loading takes as long as loading the tokenizer: do it off the event loop.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._infill = Infill.of(tokenizer.added_tokens)
        self._quoting = Quoting(tokenizer.definition, tokenizer.added_tokens) if template is not None else None

    async def chat(self, messages: list[dict[str, object]]) -> list[int]:
        """A conversation, by the model's template, up to where the assistant speaks next.

        Special tokens come from the template only: a message's text stays text, whatever it reads like. Contents are
        strings or lists of text parts.
        """
        if self._template is None or self._quoting is None:
            raise BadRequest("The model has no chat template; use /v1/completions.", param="messages")
        plain = [_with_plain_content(message) for message in messages]
        try:
            ids = await self._encode_chat(self._template, self._quoting, plain)
        except UnicodeEncodeError as error:
            raise BadRequest(_surrogate(error), param="messages", code="invalid_value") from None
        if not ids:
            raise BadRequest("The messages come to no tokens at all.", param="messages", code="invalid_value")
        return self._checked(ids, "messages")

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

    async def _encode_chat(
        self, template: ChatTemplate, quoting: Quoting, messages: list[dict[str, object]]
    ) -> list[int]:
        quoted = await asyncio.to_thread(quoting.quote, messages)
        if quoted is None:
            return await self._tokenizer.encode(await template.render(messages), add_special_tokens=False)
        rendered = await template.render(quoted.messages)
        return await quoting.encoder.encode(
            await asyncio.to_thread(quoting.restore, rendered, quoted), add_special_tokens=False
        )

    def _checked(self, ids: list[int], param: str) -> list[int]:
        if self._tokenizer.rowless_ids.isdisjoint(ids):
            return ids
        raise BadRequest(f"The {param} hold a token that the model does not have.", param=param, code="invalid_value")


def _surrogate(error: UnicodeEncodeError) -> str:
    return f"The text is not valid Unicode: there is a lone surrogate at character {error.start}."
