"""How an answer is worded as a response, item by item."""

import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from server.api.chat_reply import Occasion
from server.api.responses.body import ResponsesBody
from server.api.responses.output import Call, Event, Spoken
from server.api.schemas import Strict
from server.api.sse import to_json, typed_event, wall_time
from server.errors import HeadraceError
from server.generator import Piece, TokenText, Usage
from server.text.parts import CallArguments, CallBegin, Part, Reasoning, Text


class ResponsesReply:
    """A `Reply`. What is not streamed is the response that a stream's last event has."""

    def __init__(self, body: ResponsesBody, occasion: Occasion) -> None:
        self._repeated = _repeated(body, occasion)
        self._has_logprobs = body.wants_logprobs
        self._interpreter = occasion.interpreter
        self._items: list[Spoken | Call] = []  # the last one may still grow
        self._tokens: list[TokenText] = []  # whose text is still to come
        self._finish_reason: str | None = None
        self._events = 0  # so far

    def opening(self) -> bytes:
        response = self._response("in_progress")
        return self._told({"type": f"response.{kind}", "response": response} for kind in ("created", "in_progress"))

    def event(self, piece: Piece, usage: Usage) -> bytes:
        return self._told(self._hear(piece))

    def closing(self, usage: Usage) -> bytes:
        return self._told(self._end(usage))

    def failure(self, error: HeadraceError) -> bytes:
        response = self._response("failed") | {"error": {"code": "server_error", "message": error.message}}
        return self._told([{"type": "response.failed", "response": response}])

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        for piece in pieces:
            deque(self._hear(piece), maxlen=0)
        *_, last = self._end(usage)
        return to_json(last["response"])

    def _told(self, events: Iterable[Event]) -> bytes:
        told = b""
        for event in events:
            told += typed_event({**event, "sequence_number": self._events})
            self._events += 1
        return told

    def _hear(self, piece: Piece) -> Iterator[Event]:
        heard = self._interpreter.hear(piece)
        self._finish_reason = heard.finish_reason or self._finish_reason
        if self._has_logprobs and all(isinstance(part, Text) for part in heard.parts):
            self._tokens += heard.tokens  # no log probabilities are told of what is thought and called
        for part in heard.parts:
            yield from self._tell(part)

    def _tell(self, part: Part) -> Iterator[Event]:
        match part:
            case Text(text):
                tokens, self._tokens = self._tokens, []
                yield from self._speak("message", text, tokens)
            case Reasoning(text):
                yield from self._speak("reasoning", text, [])
            case CallBegin(_, id, name):
                yield from self._begin(Call(len(self._items), id, name))
            case CallArguments(_, text):
                call = self._items[-1]
                assert isinstance(call, Call), "arguments follow the beginning of their call"
                yield from call.grow(text)

    def _speak(self, kind: Literal["message", "reasoning"], text: str, tokens: list[TokenText]) -> Iterator[Event]:
        item = self._items[-1] if self._items else None
        if not isinstance(item, Spoken) or item.kind != kind:
            item = Spoken(len(self._items), kind)
            yield from self._begin(item)
        yield from item.grow(text, tokens)

    def _begin(self, item: Spoken | Call) -> Iterator[Event]:
        """The next item, which ends the one before."""
        if self._items:
            yield from self._items[-1].end("completed")
        self._items.append(item)
        yield from item.begin()

    def _end(self, usage: Usage) -> Iterator[Event]:
        if not self._items or self._tokens:
            yield from self._tell(Text(""))
        if self._finish_reason == "length":
            yield from self._items[-1].end("incomplete")
            response = self._response("incomplete") | {"incomplete_details": {"reason": "max_output_tokens"}}
        else:
            yield from self._items[-1].end("completed")
            response = self._response("completed") | {"completed_at": wall_time()}
        usage_fields = _usage(self._interpreter.counted(usage))
        yield {"type": f"response.{response['status']}", "response": response | {"usage": usage_fields}}

    def _response(self, status: str) -> dict[str, Any]:
        return {**self._repeated, "status": status, "output": [item.fields() for item in self._items]}


def _repeated(body: ResponsesBody, occasion: Occasion) -> dict[str, Any]:
    """What every event's response has from the start: the request's fields, as they were understood."""
    return {
        "id": f"resp_{secrets.token_hex(12)}",
        "object": "response",
        "created_at": wall_time(),
        "completed_at": None,
        "status": "in_progress",
        "model": occasion.model,
        "system_fingerprint": occasion.fingerprint,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": _format(body)},
        "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
        "tools": [_tool(tool) for tool in body.tools or []],
        "tool_choice": _choice(body),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "metadata": body.metadata or {},
        "truncation": "disabled",
        "background": False,
        "store": False,
        "previous_response_id": None,
        "service_tier": "default",
    }


def _tool(tool: Strict) -> dict[str, Any]:
    """With what OpenAI's types ask for."""
    return {"parameters": None, "strict": False, **tool.model_dump(exclude_none=True)}


def _choice(body: ResponsesBody) -> Any:
    return body.tool_choice.model_dump() if isinstance(body.tool_choice, Strict) else body.tool_choice or "auto"


def _format(body: ResponsesBody) -> dict[str, Any]:
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    return body.text.format.model_dump(by_alias=True, exclude_none=True)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
