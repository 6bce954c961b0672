"""POST /v1/messages and /v1/messages/count_tokens: the model for clients that speak Anthropic's API."""

from functools import partial

from fastapi import APIRouter, Request, Response

from server.api import chat
from server.api.answers import json_response
from server.api.body import read_body
from server.api.exchange import Answer, Job
from server.api.messages.body import CountBody, MessagesBody
from server.api.messages.reply import MessagesReply
from server.api.renaming import renamed, with_ignored_renamed
from server.api.schemas import ignored
from server.api.service import Service, service_of

router = APIRouter()

NAMES = {
    r"chat_template_kwargs\.enable_thinking": "thinking",
    r"messages\.reasoning_content": "messages.content.thinking",
    r"messages.*": "messages",  # a message more or less may stand before: its number would mislead
    r"continue_final_message": "messages",
    r"parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    r"reasoning_effort": "output_config.effort",
    r"response_format(\.json_schema)?": "output_config.format",
    r"stop": "stop_sequences",
    r"tool_choice\.function": "tool_choice",
    r"tools\[(\d+)\]\.function\.parameters": r"tools[\1].input_schema",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
}


async def _prepare(body: MessagesBody, service: Service) -> Job:
    with renamed(NAMES):
        job = await chat.prepare(body.as_chat(), service, MessagesReply)
    return with_ignored_renamed(job, NAMES)


@router.post("/v1/messages")
async def create_message(request: Request) -> Response:
    """Answers a conversation, as a whole or as a stream of typed events."""
    service = service_of(request)
    body = await read_body(request, MessagesBody, service.options)
    return Answer(service, partial(_prepare, body, service), ignored(body))


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    """How many tokens the model would read."""
    service = service_of(request)
    body = await read_body(request, CountBody, service.options)
    model = await service.model()
    with renamed(NAMES):
        asked = body.as_chat()
        model.adapter(asked.model)  # the text is the same for all of them
        prompt = (await model.tools.prompts.conversation(asked.conversation(asked.messages))).ids
    return json_response({"input_tokens": len(prompt)}, ignored=ignored(body))
