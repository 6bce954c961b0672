"""POST /v1/responses: OpenAI's newer way to ask, for one response at a time and with nothing stored."""

from dataclasses import replace
from functools import partial

from fastapi import APIRouter, Request, Response

from server.api import chat
from server.api.body import read_body
from server.api.exchange import Answer, Job
from server.api.renaming import renamed, with_ignored_renamed
from server.api.responses.body import ResponsesBody
from server.api.responses.reply import ResponsesReply
from server.api.schemas import ignored
from server.api.service import Service, service_of

router = APIRouter()

NAMES = {
    r"messages\.reasoning_content": "input.content",
    r"messages.*": "input",  # a message more or less may stand before: its number would mislead
    r"max_completion_tokens": "max_output_tokens",
    r"reasoning_effort": "reasoning.effort",
    r"response_format(\.json_schema)?": "text.format",
    r"tool_choice\.function": "tool_choice",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
}


async def _prepare(body: ResponsesBody, service: Service) -> Job:
    with renamed(NAMES):
        job = await chat.prepare(body.as_chat(), service, partial(ResponsesReply, body))
    request = replace(job.request, source="input", limit_source="max_output_tokens")
    return replace(with_ignored_renamed(job, NAMES), request=request)


@router.post("/v1/responses")
async def create_response(request: Request) -> Response:
    """Answers a conversation, as a whole or as a stream of typed events."""
    service = service_of(request)
    body = await read_body(request, ResponsesBody, service.options)
    return Answer(service, partial(_prepare, body, service), ignored(body))
