"""What form an answer is asked to have, and what must not be in it: as clients say it, and as it binds the sampling."""

import asyncio
import secrets
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, Tag, model_validator
from pydantic_core import from_json

from model.batch import Sampling
from server.api.refusals import OBJECT, STRING
from server.api.schemas import GenerationBody, Strict, TokenId, check_ids
from server.errors import BadRequest
from server.grammar.grammars import Grammars
from server.text.tokenizer import Tokenizer
from server.text_tools import TextTools

Schema = dict[str, JsonValue]
Choices = Annotated[list[str], Field(min_length=1, max_length=4096, fail_fast=True)]
Words = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=128, fail_fast=True)]
AllowedIds = Annotated[list[TokenId], Field(min_length=1, max_length=1024, fail_fast=True)]


class JsonSchema(Strict):
    no_effect = frozenset({"name", "description"})

    name: str | None = None
    description: str | None = None
    schema_: Annotated[Schema, Field(alias="schema")]
    """What the answer follows, whatever `strict` says; references are followed within the schema only."""
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    """Only where `type` says so."""

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.json_schema is not None) == (self.type == "json_schema"):
            return self
        param = "response_format.json_schema"
        if self.json_schema is None:
            raise BadRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
        raise BadRequest(f"Invalid '{param}': 'type' is {self.type}.", param=param, code="invalid_value")

    async def grammar(self, grammars: Grammars) -> str | None:
        if self.json_schema is not None:
            return await grammars.json_schema(self.json_schema.schema_, param="response_format.json_schema.schema")
        return await grammars.json_object() if self.type == "json_object" else None


class StructuredOutputs(Strict):
    """One of these, as vLLM names them."""

    json_: Annotated[Annotated[str, Tag(STRING)] | Annotated[Schema, Tag(OBJECT)] | None, Field(alias="json")] = None
    """A JSON schema, or one written out as a string."""
    json_object: Literal[True] | None = None
    """Any JSON object."""
    regex: str | None = None
    """A regular expression, in the syntax of Rust's `regex`, that matches the whole answer."""
    choice: Choices | None = None
    """The answers there are."""
    grammar: str | None = None
    """A context-free grammar: Lark as llguidance has it, with a rule `start`, or GBNF, with a rule `root`."""

    @model_validator(mode="after")
    def _check_single(self) -> Self:
        if (
            sum(given is not None for given in (self.json_, self.json_object, self.regex, self.choice, self.grammar))
            != 1
        ):
            message = "Invalid 'structured_outputs': expected exactly one of json, json_object, regex, choice, grammar."
            raise BadRequest(message, param="structured_outputs", code="invalid_value")
        return self

    async def compile(self, grammars: Grammars) -> str:
        if self.json_ is not None:
            return await grammars.json_schema(self._schema(self.json_), param="structured_outputs.json")
        if self.regex is not None:
            return await grammars.regex(self.regex, param="structured_outputs.regex")
        if self.choice is not None:
            return await grammars.choice(self.choice, param="structured_outputs.choice")
        if self.grammar is not None:
            return await grammars.lark(self.grammar, param="structured_outputs.grammar")
        return await grammars.json_object()

    def _schema(self, given: str | Schema) -> Schema:
        param = "structured_outputs.json"
        try:
            schema = from_json(given) if isinstance(given, str) else given
        except ValueError:
            raise BadRequest(f"Invalid '{param}': the string is no JSON.", param=param, code="invalid_value") from None
        if not isinstance(schema, dict):
            message = f"Invalid '{param}': the string holds no JSON object."
            raise BadRequest(message, param=param, code="invalid_value")
        return schema


class BoundBody(GenerationBody):
    """What else completions and chat completions share: the fields that take a vocabulary or a grammar to honour."""

    structured_outputs: StructuredOutputs | None = None
    """What the answer follows, token by token. It ends where nothing more can follow; `max_tokens` may cut it."""
    allowed_token_ids: AllowedIds | None = None
    """No other token is in an answer, the model's own end included."""
    bad_words: Words | None = None
    """Words that are not in an answer, as the tokenizer writes them, with a blank before them and without."""

    def check_vocabulary(self, size: int) -> None:
        super().check_vocabulary(size)
        check_ids(self.allowed_token_ids or [], size, "allowed_token_ids")

    async def grammar(self, grammars: Grammars) -> str | None:
        """What the answer has to follow, if anything; raises BadRequest where that is no grammar."""
        return await self.structured_outputs.compile(grammars) if self.structured_outputs is not None else None

    async def bound_sampling(self, tools: TextTools, *, top_logprobs: int | None) -> Sampling:
        """How tokens are chosen, with a seed drawn where there is none."""
        return replace(
            self.sampling(seed=secrets.randbits(62), top_logprobs=top_logprobs),
            allowed_token_ids=tuple(self.allowed_token_ids or ()),
            bad_words=await asyncio.to_thread(_forms, self.bad_words, tools.tokenizer) if self.bad_words else (),
            grammar=await self.grammar(tools.grammars),
        )


def _forms(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word as it stands at the beginning of a text and within one."""
    texts = (text for word in words for text in (word, f" {word.lstrip()}"))
    forms = dict.fromkeys(tuple(tokenizer.encode_plain(text)) for text in texts)
    return tuple(form for form in forms if form)
