"""What a body may hold: strict models of the fields that both generating endpoints share, and of the small ones."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from model.batch import Sampling
from server.api.refusals import STRING, STRINGS, custom
from server.api.sse import Wishes
from server.errors import BadRequest, shown

MAX_CHOICES = 64  # of one request, over all its prompts
MAX_TOKEN_IDS = 2**20  # in one list
MAX_REPORTED = 16  # fields named in the header that lists what was ignored
INT64_MAX = 2**63 - 1


def _refuse(value: object) -> None:
    if value is not None:
        raise custom("not_honoured", "leave it out")


Unsupported = Annotated[
    JsonValue,
    AfterValidator(_refuse),
    WithJsonSchema({"type": "null", "description": "Not supported: null or absent."}),
]


def unset(means: JsonValue) -> Any:
    """The default of a field that may be null, which counts as absent and means the same as `means`."""
    return Field(default=None, json_schema_extra={"default": means})


def _check_truncation(tokens: int) -> int:
    if tokens == 0:
        message = "Invalid 'truncate_prompt_tokens': expected -1 or a value >= 1, but got 0 instead."
        raise custom("invalid_value", message)
    return tokens


def _check_biases(biases: dict[str, float]) -> dict[str, float]:
    for key, bias in biases.items():
        if not (key.isascii() and key.isdecimal() and str(int(key[:20])) == key):
            raise custom("invalid_value", f"Invalid key in 'logit_bias': '{shown(key)}' is no token id.")
        if not -100 <= bias <= 100:
            raise custom("invalid_value", f"Invalid 'logit_bias': {bias:g} for token {shown(key)} is not in -100..100.")
    return biases


TokenId = Annotated[int, Field(le=INT64_MAX)]  # the model's vocabulary is checked once it is known
StopString = Annotated[str, Field(min_length=1, max_length=256)]
StopStrings = Annotated[list[StopString], Field(max_length=4, fail_fast=True)]
Stop = Annotated[StopString, Tag(STRING)] | Annotated[StopStrings, Tag(STRINGS)]
Biases = Annotated[dict[str, float], Field(max_length=300), AfterValidator(_check_biases)]


class Strict(BaseModel):
    """A JSON object that holds what it declares and nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    no_effect: ClassVar[frozenset[str]] = frozenset()  # accepted for OpenAI's clients, without influence on the answer

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        reference = handler(core)
        properties = handler.resolve_ref_schema(reference)["properties"]
        for name in cls.no_effect:
            properties[name] |= {"description": "Accepted, without effect.", "x-effect": "none"}
        return reference


class StreamOptions(Strict):
    no_effect = frozenset({"include_obfuscation"})

    include_usage: bool = False
    """Send the usage in one more event before the end."""
    continuous_usage_stats: bool = False
    """Tell the usage so far in every event."""
    include_obfuscation: bool | None = None


class GenerationBody(Strict):
    """The fields that completions and chat completions share. A field that is null counts as absent."""

    no_effect = frozenset({"user"})

    model: str | None = None
    """The id that /v1/models tells; without it, the model that is served."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = unset(1.0)
    """0 takes the likeliest token every time; 1 draws by the model's own probabilities."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = unset(1.0)
    """Draw among the fewest of the likeliest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = unset(0)
    """Draw among this many of the likeliest tokens only; -1 and 0 keep every token."""
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = unset(0.0)
    """Draw among tokens at least this likely, measured by the likeliest."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100.0)] | None = unset(1.0)
    """Divides positive logits of tokens in prompt or answer, and multiplies negative ones."""
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = unset(0.0)
    """Subtracted from the logits of tokens that the answer has already."""
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = unset(0.0)
    """Subtracted from a token's logit for every time that the answer has it already."""
    logit_bias: Biases | None = unset({})
    """Token ids, as strings, and what is added to their logits: -100 to 100."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that each choice may have."""
    min_tokens: Annotated[int, Field(ge=0)] | None = unset(0)
    """Tokens that each choice has before a token may end it."""
    n: Annotated[int, Field(ge=1, le=16)] | None = unset(1)
    """Choices for each prompt. Choice i is drawn with seed + i."""
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    """The same request with the same seed has the same answer; drawn by the server where there is none."""
    stop: Stop | None = unset([])
    """Strings of 1 to 256 characters before which an answer ends; they are not part of it."""
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128, fail_fast=True)] | None = unset([])
    """Tokens that end an answer, as the model's own end does; they are not part of it."""
    ignore_eos: bool | None = unset(False)
    """Go on where the model would end."""
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Tell the log probability of each token of the prompt, and so many of the likeliest; not in a stream."""
    return_token_ids: bool | None = unset(False)
    """Add `token_ids` to each choice."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=INT64_MAX), AfterValidator(_check_truncation)] | None = None
    """Keep so many tokens from the end of each prompt; -1 keeps those that leave room for `max_tokens`."""
    priority: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = unset(0)
    """Of those that wait, the lowest starts first; of those that run, the highest gives way first. No token changes."""
    return_timings: bool | None = unset(False)
    """Add `timings`: how long the request waited, its prompt took and its answer took."""
    stream: bool | None = unset(False)
    """Send the answer as server-sent events while it comes about."""
    stream_options: StreamOptions | None = None
    """Only where `stream` is true."""
    user: str | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Only requests with the same one share the prefix cache, so that nobody else's timing tells of this prompt. It
    changes no answer."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise BadRequest(
                "Invalid 'stream_options': only allowed when 'stream' is true.",
                param="stream_options",
                code="invalid_value",
            )
        if self.prompt_logprobs is not None and self.stream:
            message = "Unsupported value: 'prompt_logprobs' together with 'stream'."
            raise BadRequest(message, param="prompt_logprobs", code="unsupported_value")
        limit = self.output_limit
        if limit is not None and (self.min_tokens or 0) > limit:
            message = (
                f"Invalid 'min_tokens': {shown(str(self.min_tokens))} is more than {shown(str(limit))}, the limit."
            )
            raise BadRequest(message, param="min_tokens", code="invalid_value")
        return self

    @property
    def output_limit(self) -> int | None:
        """Tokens that each choice may have; None is for as many as fit."""
        return self.max_tokens

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def wishes(self) -> Wishes:
        options = self.stream_options or StreamOptions()
        return Wishes(
            usage=options.include_usage,
            usage_always=options.continuous_usage_stats,
            timings=bool(self.return_timings),
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def truncated(self, prompt: list[int], longest: int) -> list[int]:
        """What the request lets be kept of a prompt; `longest` is what prompt and answer may come to together."""
        kept = self.truncate_prompt_tokens
        if kept is None:
            return prompt
        return prompt[-max(longest - (self.output_limit or 1) if kept == -1 else kept, 1) :]

    def check_vocabulary(self, size: int) -> None:
        """Raises BadRequest for ids that the model does not have."""
        check_ids(self.stop_token_ids or [], size, "stop_token_ids")
        for key in self.logit_bias or {}:
            if int(key) >= size:
                message = f"Invalid key in 'logit_bias': token {key} is not in the vocabulary of {size} tokens."
                raise BadRequest(message, param="logit_bias", code="invalid_value")

    def sampling(self, *, seed: int, top_logprobs: int | None) -> Sampling:
        """Every field that is absent keeps the value that changes nothing."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(key): bias for key, bias in (self.logit_bias or {}).items()},
            min_tokens=self.min_tokens or 0,
            seed=seed if self.seed is None else self.seed,
            top_logprobs=top_logprobs,
        )


def check_ids(ids: list[int], size: int, path: str) -> None:
    """Raises BadRequest that names the first of `ids` outside a vocabulary of `size`."""
    if not ids or (min(ids) >= 0 and max(ids) < size):
        return
    position, wrong = next((i, token) for i, token in enumerate(ids) if not 0 <= token < size)
    param = f"{path}[{position}]"
    message = f"Invalid '{param}': {shown(str(wrong))} is not in the vocabulary of {size} tokens."
    raise BadRequest(message, param=param, code="invalid_value")


def ignored(body: Strict) -> list[str]:
    """The fields given that have no influence: OpenAI's without effect here, and unknown ones where those pass."""
    return list(dict.fromkeys(_ignored(body, "")))[:MAX_REPORTED]


def _ignored(body: Strict, prefix: str) -> Iterator[str]:
    for name in [*sorted(body.no_effect & body.model_fields_set), *(body.model_extra or {})]:
        if getattr(body, name) is not None:
            yield prefix + "".join(char if 32 < ord(char) < 127 else "?" for char in shown(name))
    for name in body.model_fields_set:
        value: Any = getattr(body, name)
        for inner in value if isinstance(value, list) else [value]:
            if not isinstance(inner, Strict):
                break  # lists are of one kind
            yield from _ignored(inner, f"{prefix}{name}.")
