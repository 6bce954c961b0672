"""POST /v1/completions: prompts in, what comes next out."""

import codecs
from typing import Annotated, Any, Self, cast

from fastapi import APIRouter, Request, Response
from pydantic import Field, Tag, model_validator

from server.api.body import read_body
from server.api.choices import Choice, choices_of, ids_field, logprob_of
from server.api.exchange import Answer, Job
from server.api.prompt_logprobs import ToldPrompt, readings_of
from server.api.recording import recorded
from server.api.refusals import LISTS, NUMBERS, STRING, STRINGS
from server.api.schemas import (
    MAX_CHOICES,
    MAX_TOKEN_IDS,
    TokenId,
    check_ids,
    ignored,
    unset,
)
from server.api.service import ServedModel, Service, service_of
from server.api.sse import Chunks, Envelope, json_text, to_json
from server.api.structure import BoundBody
from server.api.tracing import generation, traced
from server.errors import BadRequest, HeadraceError
from server.generator import GenerationRequest, Piece, TokenText, Usage

DEFAULT_MAX_TOKENS = 16  # OpenAI's

router = APIRouter()

TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
TokenLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]
Prompt = (
    Annotated[str, Tag(STRING)]
    | Annotated[Texts, Tag(STRINGS)]
    | Annotated[TokenIds, Tag(NUMBERS)]
    | Annotated[TokenLists, Tag(LISTS)]
)


class CompletionBody(BoundBody):
    prompt: Annotated[Prompt, Field(union_mode="left_to_right")]
    """A text, token ids, or a list of either: each is continued on its own."""
    max_tokens: Annotated[int, Field(ge=0)] | None = unset(DEFAULT_MAX_TOKENS)
    """Tokens that each choice may have; 0 only where the prompt's log probabilities are asked for."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Tell each token's log probability, and so many of the likeliest alternatives."""
    echo: bool | None = unset(False)
    """Put the prompt before the answer; with `logprobs`, not in a stream, its own log probabilities as well."""
    best_of: Annotated[int, Field(ge=1, le=16)] | None = None
    """Only the value of `n` is accepted."""
    suffix: str | None = None
    """Text after the gap that the answer fills; for models that have tokens for that."""

    @model_validator(mode="after")
    def _check_completion(self) -> Self:
        if self.best_of is not None and self.best_of != self.choices_per_prompt:
            code = "invalid_value" if self.best_of < self.choices_per_prompt else "unsupported_value"
            message = "Invalid 'best_of': only the value of 'n' is supported, which returns all that is generated."
            raise BadRequest(message, param="best_of", code=code)
        if self.has_told_echo and self.stream:
            message = (
                "Unsupported value: 'logprobs' together with 'echo', which asks for the prompt's own, in a stream."
            )
            raise BadRequest(message, param="logprobs", code="unsupported_value")
        if self.suffix is not None:
            self._check_suffix()
        if self.max_tokens == 0 and self.prompt_top is None:
            message = (
                "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead, which "
            )
            message += "is for requests that ask for the log probabilities of the prompt."
            raise BadRequest(message, param="max_tokens", code="integer_below_min_value")
        if len(self.prompts) * self.choices_per_prompt > MAX_CHOICES:
            message = f"Invalid 'prompt': array too long. Expected at most {MAX_CHOICES} choices, prompts times 'n'."
            raise BadRequest(message, param="prompt", code="array_above_max_length")
        return self

    def _check_suffix(self) -> None:
        is_text = all(isinstance(prompt, str) for prompt in self.prompts)
        if self.echo or self.truncate_prompt_tokens is not None or not is_text:
            message = "Unsupported value: 'suffix' together with 'echo', 'truncate_prompt_tokens' or token ids."
            raise BadRequest(message, param="suffix", code="unsupported_value")

    @property
    def output_limit(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def has_told_echo(self) -> bool:
        """The prompt is echoed with the log probabilities of its tokens."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def prompt_top(self) -> int | None:
        """Alternatives to tell beside each token of the prompts; None where not even the tokens' own are told."""
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((top for top in wanted if top is not None), default=None)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The four forms of `prompt` as one. By the schema, all elements of a list are what its first one is."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast("list[str | list[int]]", self.prompt)


class Offsets:
    """Where the tokens of one choice begin in its text, in characters; a token may begin within one."""

    def __init__(self, start: int) -> None:
        self._next = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, tokens: list[TokenText]) -> list[int]:
        offsets = []
        for token in tokens:
            offsets.append(self._next)
            self._next += len(self._decoder.decode(token.bytes))
        return offsets


class CompletionReply:
    def __init__(
        self,
        body: CompletionBody,
        model: ServedModel,
        name: str,
        fingerprint: str,
        prompts: list[list[int]],
        echoes: list[str],
    ) -> None:
        """`name` is the one that was asked for; `echoes` has what stands before each choice's own text, by index."""
        self._envelope = Envelope.new("cmpl", "text_completion", name, fingerprint)
        self._chunks = Chunks(self._envelope, body.wishes)
        self._body = body
        self._has_logprobs = body.logprobs is not None
        self._has_ids = bool(body.return_token_ids)
        self._has_timings = bool(body.return_timings)
        self._prompts = prompts
        self._echoes = echoes
        self._offsets = [Offsets(len(echo)) for echo in echoes]
        self._tokenizer = model.tools.tokenizer

    def opening(self) -> bytes:
        return b"".join(self.event(Piece(index, echo, [], None)) for index, echo in enumerate(self._echoes) if echo)

    def event(self, piece: Piece, usage: Usage | None = None) -> bytes:
        has_logprobs = self._has_logprobs and piece.tokens
        ids = ids_field(piece.tokens) if self._has_ids and piece.tokens else b""
        if not (piece.text or has_logprobs or ids or piece.finish_reason):
            return b""
        offsets = self._offsets[piece.index].of(piece.tokens) if has_logprobs else []
        logprobs = to_json(_logprobs(piece.tokens, offsets)) if has_logprobs else b"null"
        head = b'{"index":%d,"text":' % piece.index + json_text(piece.text)
        return self._chunks.around(
            head + b',"logprobs":' + logprobs + ids + b',"finish_reason":' + to_json(piece.finish_reason) + b"}",
            usage,
        )

    def closing(self, usage: Usage) -> bytes:
        return self._chunks.closing(usage)

    def failure(self, error: HeadraceError) -> bytes:
        return self._chunks.failure(error)

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        told = choices_of(pieces)
        choices = [
            {
                "index": choice.index,
                "text": self._echoes[choice.index] + choice.text,
                "logprobs": self._all_logprobs(choice, told) if self._has_logprobs else None,
                "finish_reason": choice.finish_reason,
                **(choice.ids if self._has_ids else {}),
                **self._prompt_logprobs(choice, told),
            }
            for choice in told
        ]
        return to_json(self._envelope.around(choices, usage, has_timings=self._has_timings))

    def _all_logprobs(self, choice: Choice, told: list[Choice]) -> dict[str, Any]:
        """Of the text, which may begin with the prompt."""
        offsets, tokens = self._offsets[choice.index].of(choice.tokens), choice.tokens
        if self._body.has_told_echo:
            prompt = self._prompt(choice, told)
            offsets = [*prompt.offsets(self._echoes[choice.index]), *offsets]
            tokens = [*prompt.tokens(self._body.logprobs or 0), *tokens]
        return _logprobs(tokens, offsets)

    def _prompt_logprobs(self, choice: Choice, told: list[Choice]) -> dict[str, Any]:
        top = self._body.prompt_logprobs
        return {} if top is None else {"prompt_logprobs": self._prompt(choice, told).entries(top)}

    def _prompt(self, choice: Choice, told: list[Choice]) -> ToldPrompt:
        """The first of its choices tells of a prompt."""
        place = choice.index // self._body.choices_per_prompt
        first = told[place * self._body.choices_per_prompt]
        return ToldPrompt(self._prompts[place], first.findings, self._tokenizer)


def _logprobs(tokens: list[TokenText], offsets: list[int]) -> dict[str, Any]:
    """Null for the first token of a prompt, of which nothing is told."""
    return {
        "text_offset": offsets,
        "token_logprobs": [None if token.logprob is None else logprob_of(token) for token in tokens],
        "tokens": [_name(token) for token in tokens],
        "top_logprobs": [None if token.logprob is None else _alternatives(token) for token in tokens],
    }


def _name(token: TokenText) -> str:
    """The token's text; where that is not all of it, its bytes, as OpenAI writes them."""
    if token.text.encode() == token.bytes:
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def _alternatives(token: TokenText) -> dict[str, float]:
    """By name, likeliest first, with the chosen token last if it is none of the likeliest; its figure stays its own."""
    named: dict[str, float] = {}
    for other in token.top:
        named.setdefault(_name(other), logprob_of(other))
    named[_name(token)] = logprob_of(token)
    return named


async def _prepare(body: CompletionBody, service: Service) -> Job:
    model = await service.generating_model()
    adapter = model.adapter(body.model)
    body.check_vocabulary(model.card.vocab_size)
    prompts = [body.truncated(prompt, service.engine.longest) for prompt in await _encode(body, model)]
    request = GenerationRequest(
        prompts=prompts,
        source="prompt",
        n=body.choices_per_prompt,
        max_tokens=body.output_limit,
        stop=body.stop_strings,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        sampling=await body.bound_sampling(model.tools, top_logprobs=body.logprobs),
        adapter=adapter.digest if adapter else None,
        salt=body.cache_salt or "",
        priority=body.priority or 0,
        readings=readings_of(
            prompts, body.prompt_top, "logprobs" if body.prompt_logprobs is None else "prompt_logprobs"
        ),
        shows_ending=body.has_told_echo,  # who reads a prompt's figures counts them from both ends
    )
    provenance = service.provenance(model, adapter)
    name = (adapter or model).name
    reply = CompletionReply(body, model, name, provenance.fingerprint, prompts, _echoes(body, model, prompts))
    job = Job(model.tools.generator, request, reply, bool(body.stream), provenance)
    job = recorded(job, "/v1/completions", body, service.recorder)
    return traced(job, generation("text_completion", body, request), model.name, service.tracer)


async def _encode(body: CompletionBody, model: ServedModel) -> list[list[int]]:
    encoded = []
    for position, prompt in enumerate(body.prompts):
        if isinstance(prompt, str):
            encoded.append(await model.tools.prompts.text(prompt, body.suffix))
            continue
        path = "prompt" if len(body.prompts) == 1 and prompt is body.prompt else f"prompt[{position}]"
        check_ids(prompt, model.card.vocab_size, path)
        encoded.append(prompt)
    return encoded


def _echoes(body: CompletionBody, model: ServedModel, prompts: list[list[int]]) -> list[str]:
    if not body.echo:
        return [""] * (len(body.prompts) * body.choices_per_prompt)
    told = body.prompts if body.truncate_prompt_tokens is None else prompts
    texts = [prompt if isinstance(prompt, str) else model.tools.tokenizer.decode(prompt) for prompt in told]
    return [text for text in texts for _ in range(body.choices_per_prompt)]


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    """Continues prompts, as a whole or as a stream of events."""
    service = service_of(request)
    body = await read_body(request, CompletionBody, service.options)
    return Answer(service, lambda: _prepare(body, service), ignored(body))
