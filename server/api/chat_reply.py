"""How an answer is worded as a chat completion, whole or in chunks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.api.chat_body import ChatBody
from server.api.choices import choices_of, described, ids_field
from server.api.exchange import Reply
from server.api.interpreter import FinishReason, Interpreter
from server.api.prompt_logprobs import ToldPrompt
from server.api.sse import Chunks, Envelope, json_text, to_json
from server.errors import HeadraceError
from server.generator import Piece, TokenText, Usage
from server.text.parts import CallArguments, CallBegin, Part, Reasoning, Text
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Occasion:
    """What a wording needs to know beside the body."""

    model: str  # its name in the API
    fingerprint: str
    prompt: list[int]
    tokenizer: Tokenizer
    interpreter: Interpreter  # of what is generated

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)


Wording = Callable[[Occasion], Reply]


class ChatReply:
    def __init__(self, body: ChatBody, occasion: Occasion) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self._envelope = Envelope.new("chatcmpl", kind, occasion.model, occasion.fingerprint)
        self._chunks = Chunks(self._envelope, body.wishes)
        self._choices = body.choices_per_prompt
        self._interpreter = occasion.interpreter
        self._has_logprobs = bool(body.logprobs)
        self._has_ids = bool(body.return_token_ids)
        self._has_timings = bool(body.return_timings)
        self._prompt_logprobs = body.prompt_logprobs
        self._occasion = occasion

    def opening(self) -> bytes:
        role = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return b"".join(self._chunks.around(role % index) for index in range(self._choices))

    def event(self, piece: Piece, usage: Usage) -> bytes:
        heard, usage = self._interpreter.hear(piece), self._interpreter.counted(usage)
        about = self._about(heard.tokens)
        deltas = [_delta(part) for part in heard.parts]
        if about is not None and not deltas:
            deltas = [_delta(Text(""))]
        events = b""
        for delta in deltas:
            head = b'{"index":%d,"delta":{%b},"logprobs":' % (piece.index, delta)
            events += self._chunks.around(head + (about or b"null") + b',"finish_reason":null}', usage)
            about = None  # told with the first that shows their text, or a part of it
        if heard.finish_reason is not None:
            end = (piece.index, heard.finish_reason.encode())
            events += self._chunks.around(b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b"}' % end, usage)
        return events

    def _about(self, tokens: list[TokenText]) -> bytes | None:
        """What is told of tokens beside their text, as the values of `logprobs` and the fields after it."""
        if not tokens or not (self._has_logprobs or self._has_ids):
            return None
        logprobs = to_json(_logprobs(tokens)) if self._has_logprobs else b"null"
        return logprobs + (ids_field(tokens) if self._has_ids else b"")

    def closing(self, usage: Usage) -> bytes:
        return self._chunks.closing(self._interpreter.counted(usage))

    def failure(self, error: HeadraceError) -> bytes:
        return self._chunks.failure(error)

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        told = choices_of(pieces)
        parts: dict[int, list[Part]] = {}
        reasons: dict[int, FinishReason | None] = {}
        for piece in pieces:
            heard = self._interpreter.hear(piece)
            parts.setdefault(piece.index, []).extend(heard.parts)
            reasons[piece.index] = heard.finish_reason or reasons.get(piece.index)
        choices = [
            {
                "index": choice.index,
                "message": _message(parts[choice.index]),
                "logprobs": _logprobs(choice.tokens) if self._has_logprobs else None,
                "finish_reason": reasons[choice.index],
                **(choice.ids if self._has_ids else {}),
            }
            for choice in told
        ]
        usage = self._interpreter.counted(usage)
        answer = self._envelope.around(choices, usage, has_timings=self._has_timings)
        if self._prompt_logprobs is not None:
            prompt = ToldPrompt(self._occasion.prompt, told[0].findings, self._occasion.tokenizer)
            answer["prompt_logprobs"] = prompt.entries(self._prompt_logprobs)
        return to_json(answer)


def _delta(part: Part) -> bytes:
    """The fields of a chunk's delta."""
    match part:
        case Text(text):
            return b'"content":' + json_text(text)
        case Reasoning(text):
            return b'"reasoning_content":%b,"reasoning":%b' % (json_text(text), json_text(text))
        case CallBegin(place, id, name):
            called = b'{"index":%d,"id":"%b","type":"function","function":{"name":"%b","arguments":""}}'
            return b'"tool_calls":[%b]' % (called % (place, id.encode(), name.encode()))
        case CallArguments(place, text):
            return b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % (place, json_text(text))


def _message(parts: list[Part]) -> dict[str, Any]:
    """What the deltas add up to."""
    text = "".join(part.text for part in parts if isinstance(part, Text))
    thought = "".join(part.text for part in parts if isinstance(part, Reasoning))
    arguments: dict[int, list[str]] = {}
    for part in parts:
        if isinstance(part, CallArguments):
            arguments.setdefault(part.place, []).append(part.text)
    calls = [_call(part, "".join(arguments[part.place])) for part in parts if isinstance(part, CallBegin)]
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if thought:
        message |= {"reasoning_content": thought, "reasoning": thought}
    return message | {"tool_calls": calls} if calls else message


def _call(call: CallBegin, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _logprobs(tokens: list[TokenText]) -> dict[str, Any]:
    return {"content": described(tokens), "refusal": None}
