"""POST /v1/decisions: questions about an input, answered by how likely each of the given answers is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import Field, JsonValue, Tag, model_validator

from model.batch import Reading
from server.api.body import read_body
from server.api.choices import Choice, choices_of
from server.api.dialogue import SWITCHES
from server.api.exchange import Answer, Job, Unstreamed
from server.api.labels import Kind, Label, answer, asked, labels_of, probabilities
from server.api.refusals import FLAG, LISTS, STRING, custom
from server.api.schemas import Strict, ignored
from server.api.service import ServedModel, Service, service_of
from server.api.sse import to_json
from server.api.tracing import Query, traced, user_messages
from server.errors import BadRequest, PromptTooLong
from server.generator import GenerationRequest, Piece, Usage
from server.text.conversation import Conversation, Turn

MAX_QUESTIONS, MAX_OPTIONS = 400, 255  # OpenAI's
MAX_LABELS = 4096  # over all questions: each is a sequence of its own
MAX_TOKENS = 2**22  # of all these sequences together

router = APIRouter()

LabelText = Annotated[str, Field(min_length=1, max_length=256)]


class Part(Strict):
    """A text, or JSON that is read as a text."""

    no_effect = frozenset({"prompt_cache_breakpoint"})

    type: Literal["input_text", "output_text", "input_json"]
    text: str | None = None
    """Of a part that is a text."""
    data: JsonValue = None
    """Of a part that is JSON."""
    prompt_cache_breakpoint: dict[str, str] | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        wanted = "data" if self.type == "input_json" else "text"
        if {name for name in ("text", "data") if getattr(self, name) is not None} != {wanted}:
            raise custom("invalid_value", f"Invalid part: one of type '{self.type}' has '{wanted}' and nothing else.")
        return self

    def __str__(self) -> str:
        return to_json(self.data).decode() if self.text is None else self.text


Parts = Annotated[list[Part], Field(min_length=1, max_length=256, fail_fast=True)]
Content = Annotated[str, Tag(STRING)] | Annotated[Parts, Tag(LISTS)]


class InputMessage(Strict):
    no_effect = frozenset({"phase"})

    type: Literal["message"] | None = None
    role: Literal["user", "developer", "system", "assistant"]
    content: Content
    phase: str | None = None


class Option(Strict):
    value: Annotated[LabelText, Tag(STRING)] | Annotated[bool, Tag(FLAG)]
    """What the model would say, and what the answer names; true and "true" are two values."""
    description: str | None = None
    """What the model is told of it."""


class Level(Strict):
    label: LabelText
    """What the model would say."""
    description: str | None = None
    """What the model is told of it."""


class Question(Strict):
    type: Kind
    """A statement that may be true, a choice among values, or a score on levels."""
    instructions: Content
    """The statement, or what is to be chosen or rated."""
    name: str | None = None
    """Comes back with the answer."""
    choices: Annotated[list[Option], Field(min_length=2, max_length=MAX_OPTIONS, fail_fast=True)] | None = None
    """Of a choice: its values, no two equal."""
    levels: Annotated[list[Level], Field(min_length=2, max_length=MAX_OPTIONS, fail_fast=True)] | None = None
    """Of a score: its levels from the lowest to the highest, no two equal."""

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        wanted = {"predicate": set(), "choice": {"choices"}, "score": {"levels"}}[self.type]
        if {name for name in ("choices", "levels") if getattr(self, name) is not None} != wanted:
            has = f"has '{wanted.pop()}' and nothing else" if wanted else "has neither 'choices' nor 'levels'"
            raise custom("invalid_value", f"Invalid question: one of type '{self.type}' {has} to choose from.")
        if len({(type(label.value), label.value) for label in self.labels}) < len(self.labels):
            raise custom("invalid_value", "Invalid question: no two of its choices or levels may be equal.")
        return self

    @property
    def labels(self) -> list[Label]:
        return labels_of(
            [
                *((option.value, option.description) for option in self.choices or []),
                *((level.label, level.description) for level in self.levels or []),
            ]
        )


class DecisionBody(Strict):
    no_effect = frozenset({"prompt_cache_options", "safety_identifier"})

    model: str | None = None
    """The id that /v1/models tells; without it, the model that is served."""
    input: (
        Annotated[str, Tag(STRING)]
        | Annotated[list[InputMessage], Field(min_length=1, max_length=2048, fail_fast=True), Tag(LISTS)]
    )
    """A text or a conversation; every question is about all of it."""
    questions: Annotated[list[Question], Field(min_length=1, max_length=MAX_QUESTIONS, fail_fast=True)]
    """Answered in their order, each on its own."""
    prompt_cache_key: Annotated[str, Field(max_length=256)] | None = None
    """Requests with another one share nothing of the prefix cache."""
    prompt_cache_options: dict[str, str] | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if sum(len(question.labels) for question in self.questions) > MAX_LABELS:
            message = f"Invalid 'questions': they have more than {MAX_LABELS} possible answers together."
            raise BadRequest(message, param="questions", code="array_above_max_length")
        return self

    def shown(self) -> str:
        """The input as the model reads it."""
        if isinstance(self.input, str):
            return self.input
        return "\n\n".join(f"{message.role}: {_text(message.content)}" for message in self.input)


def _text(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "\n".join(map(str, content))


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in tokens: what is asked, and each label as it would be said."""

    question: Question
    prompt: list[int]
    said: list[list[int]]


class DecisionReply(Unstreamed):
    def __init__(self, model: str, all_asked: list[Asked]) -> None:
        self._model = model
        self._asked = all_asked

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        choices = iter(choices_of(pieces))
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens,
        }
        answers = [_answer(each, choices) for each in self._asked]
        return to_json({"answers": answers, "model": self._model, "usage": counts})


def _answer(each: Asked, choices: Iterator[Choice]) -> dict[str, Any]:
    """From the next choices, one for each label."""
    logprobs = [
        math.fsum(told.chosen for finding in next(choices).findings for told in finding.logprobs) for _ in each.said
    ]
    question = each.question
    return answer(question.type, question.name, question.labels, probabilities(each.said, logprobs))


async def _ask(question: Question, place: int, shown: str, model: ServedModel) -> Asked:
    labels = question.labels
    text = f"{shown}\n\n{asked(question.type, _text(question.instructions), labels)}"
    turns: list[Turn] = [{"role": "user", "content": text}]
    asking = Conversation(turns=turns, variables=dict.fromkeys(SWITCHES, False))  # an answer without reasoning
    try:
        prompt = (await model.tools.prompts.conversation(asking)).ids
    except BadRequest as error:
        message = error.message.replace("; use /v1/completions", "")
        raise BadRequest(message, param="input", code=error.code) from None
    said = [await model.tools.prompts.said(label.text, f"questions[{place}]") for label in labels]
    return Asked(question, prompt, said)


def _check_length(all_asked: list[Asked], longest: int) -> None:
    """Of what is asked so far."""
    if len(all_asked[-1].prompt) > longest:
        raise PromptTooLong(limit=longest, prompt_tokens=len(all_asked[-1].prompt), param="input")
    if sum(len(each.prompt) * len(each.said) for each in all_asked) > MAX_TOKENS:
        message = f"Invalid 'questions': with the input before each answer, they come to more than {MAX_TOKENS} tokens."
        raise BadRequest(message, param="questions", code="invalid_value")


async def _prepare(body: DecisionBody, service: Service) -> Job:
    model = await service.generating_model()
    adapter = model.adapter(body.model)
    shown = body.shown()
    all_asked: list[Asked] = []
    for place, question in enumerate(body.questions):
        all_asked.append(await _ask(question, place, shown, model))
        _check_length(all_asked, service.engine.longest)
    request = GenerationRequest(
        prompts=[[*each.prompt, *said] for each in all_asked for said in each.said],
        source="input",
        max_tokens=0,
        adapter=adapter.digest if adapter else None,
        salt=body.prompt_cache_key or "",
        readings=[Reading(start=len(each.prompt) - 1, top_logprobs=0) for each in all_asked for _ in each.said],
    )
    reply = DecisionReply((adapter or model).name, all_asked)
    job = Job(model.tools.generator, request, reply, False, service.provenance(model, adapter))
    query = Query("decision", body.model, {"headrace.questions": len(body.questions)}, lambda: user_messages([shown]))
    return traced(job, query, model.name, service.tracer)


@router.post("/v1/decisions")
async def create_decision(request: Request) -> Response:
    """Answers questions by the log probabilities of their possible answers, which share one prefill a question."""
    service = service_of(request)
    body = await read_body(request, DecisionBody, service.options)
    return Answer(service, lambda: _prepare(body, service), ignored(body))
