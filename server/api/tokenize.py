"""POST /tokenize and /detokenize: text to the model's token ids and back, in vLLM's shapes."""

from typing import Annotated, Self

from fastapi import APIRouter, Request, Response
from pydantic import Field, model_validator

from server.api.answers import json_response
from server.api.body import read_body
from server.api.conversation import Messages, TemplateFields
from server.api.dialogue import without_effect
from server.api.schemas import MAX_TOKEN_IDS, Strict, TokenId, check_ids, ignored, unset
from server.api.service import ServedModel, service_of
from server.errors import BadRequest

router = APIRouter()


class TokenizeBody(TemplateFields):
    """Either a text or a conversation."""

    model: str | None = None
    """The id that /v1/models tells; without it, the model that is served."""
    prompt: str | None = None
    """A text. Either this or `messages` is required."""
    messages: Messages | None = None
    """A conversation, up to where the assistant speaks next."""
    add_special_tokens: bool | None = unset(True)
    """Put before the text what a completion's prompt has there; conversations bring their own."""
    return_token_strs: bool | None = unset(False)
    """Tell each token's text as well."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            code = "missing_required_parameter" if self.prompt is None else "invalid_value"
            raise BadRequest("Exactly one of 'prompt' and 'messages' is required.", param="prompt", code=code)
        source, foreign = "prompt", ["add_special_tokens"]
        if self.messages is None:
            source, foreign = "messages", sorted(TemplateFields.model_fields)
        for name in foreign:
            if getattr(self, name) is not None:
                message = f"Unsupported parameter: '{name}' goes with '{source}' only."
                raise BadRequest(message, param=name, code="unsupported_parameter")
        return self


class DetokenizeBody(Strict):
    model: str | None = None
    """The id that /v1/models tells; without it, the model that is served."""
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]
    """Token ids below the size of the vocabulary."""


async def _encode(body: TokenizeBody, model: ServedModel) -> list[int]:
    if body.messages is not None:
        return (await model.tools.prompts.conversation(body.conversation(body.messages))).ids
    assert body.prompt is not None, "the schema asks for one of the two"
    add_special_tokens = body.add_special_tokens is not False
    return await model.tools.tokenizer.encode(body.prompt, add_special_tokens=add_special_tokens)


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    """The token ids of a text, or of a conversation as the model sees it."""
    service = service_of(request)
    body = await read_body(request, TokenizeBody, service.options)
    model = await service.model()
    model.adapter(body.model)  # tokens are the same for all of them
    tokens = await _encode(body, model)
    names = [model.tools.tokenizer.token_text(token).text for token in tokens] if body.return_token_strs else None
    answer = {
        "count": len(tokens),
        "max_model_len": model.card.context_length,
        "tokens": tokens,
        "token_strs": names,
    }
    unread = without_effect(body, body.messages, model.tools.prompts) if body.messages else []
    return json_response(answer, ignored=[*ignored(body), *unread])


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    service = service_of(request)
    body = await read_body(request, DetokenizeBody, service.options)
    model = await service.model()
    model.adapter(body.model)  # tokens are the same for all of them
    check_ids(body.tokens, model.card.vocab_size, "tokens")
    text = model.tools.tokenizer.decode(body.tokens)
    return json_response({"prompt": text}, ignored=ignored(body))
