"""POST /v1/chat/completions: a conversation in, the assistant's next message out."""

from dataclasses import replace
from functools import partial

from fastapi import APIRouter, Request, Response

from server.api.body import read_body
from server.api.chat_body import ChatBody
from server.api.chat_reply import ChatReply, Occasion, Wording
from server.api.dialogue import dialogue, without_effect
from server.api.exchange import Answer, Job
from server.api.prompt_logprobs import readings_of
from server.api.recording import recorded
from server.api.schemas import ignored
from server.api.service import Service, service_of
from server.api.tracing import generation, traced
from server.generator import GenerationRequest

router = APIRouter()


async def prepare(body: ChatBody, service: Service, wording: Wording) -> Job:
    """The one way from a conversation to what generates its next message, for every endpoint that takes one."""
    model = await service.generating_model()
    adapter = model.adapter(body.model)
    body.check_vocabulary(model.card.vocab_size)
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = await body.bound_sampling(model.tools, top_logprobs=top_logprobs)
    asked = await dialogue(body, model, is_bound=sampling.grammar is not None)
    prompt = body.truncated(asked.prompt, service.engine.longest)
    request = GenerationRequest(
        prompts=[prompt],
        source="messages",
        n=body.choices_per_prompt,
        max_tokens=body.output_limit,
        limit_source="max_completion_tokens" if body.max_tokens is None else "max_tokens",
        stop=body.stop_strings,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        shown=asked.shown,
        sampling=replace(sampling, grammar=asked.grammar or sampling.grammar),
        adapter=adapter.digest if adapter else None,
        salt=body.cache_salt or "",
        priority=body.priority or 0,
        readings=readings_of([prompt], body.prompt_logprobs, "prompt_logprobs"),
    )
    provenance = service.provenance(model, adapter)
    name = (adapter or model).name
    reply = wording(Occasion(name, provenance.fingerprint, prompt, model.tools.tokenizer, asked.interpreter))
    unread = without_effect(body, body.messages, model.tools.prompts)
    job = Job(model.tools.generator, request, reply, bool(body.stream), provenance, unread)
    job = recorded(job, "/v1/chat/completions", body, service.recorder)
    return traced(job, generation("chat", body, request), model.name, service.tracer)


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation, as a whole or as a stream of events."""
    service = service_of(request)
    body = await read_body(request, ChatBody, service.options)
    job = partial(prepare, body, service, partial(ChatReply, body))
    return Answer(service, job, ignored(body))
