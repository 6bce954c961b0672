"""How an answer is worded as a chat completion, whole or in chunks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.api.chat_body import ChatBody
from server.api.choices import choices_of, described, ids_field
from server.api.exchange import Reply
from server.api.prompt_logprobs import ToldPrompt
from server.api.sse import Chunks, Envelope, json_text, to_json
from server.errors import HeadraceError
from server.generator import Piece, TokenText, Usage
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Occasion:
    """What a wording needs to know beside the body."""

    model: str  # its name in the API
    fingerprint: str
    prompt: list[int]
    tokenizer: Tokenizer

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
        self._has_logprobs = bool(body.logprobs)
        self._has_ids = bool(body.return_token_ids)
        self._has_timings = bool(body.return_timings)
        self._prompt_logprobs = body.prompt_logprobs
        self._occasion = occasion

    def opening(self) -> bytes:
        role = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return b"".join(self._chunks.around(role % index) for index in range(self._choices))

    def event(self, piece: Piece, usage: Usage) -> bytes:
        logprobs = to_json(_logprobs(piece.tokens)) if self._has_logprobs and piece.tokens else b"null"
        ids = ids_field(piece.tokens) if self._has_ids and piece.tokens else b""
        events = b""
        if piece.text or logprobs != b"null" or ids:
            head = b'{"index":%d,"delta":{"content":' % piece.index + json_text(piece.text)
            events = self._chunks.around(head + b'},"logprobs":' + logprobs + ids + b',"finish_reason":null}', usage)
        if piece.finish_reason is not None:
            end = (piece.index, piece.finish_reason.encode())
            events += self._chunks.around(b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b"}' % end, usage)
        return events

    def closing(self, usage: Usage) -> bytes:
        return self._chunks.closing(usage)

    def failure(self, error: HeadraceError) -> bytes:
        return self._chunks.failure(error)

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        told = choices_of(pieces)
        choices = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": _logprobs(choice.tokens) if self._has_logprobs else None,
                "finish_reason": choice.finish_reason,
                **(choice.ids if self._has_ids else {}),
            }
            for choice in told
        ]
        answer = self._envelope.around(choices, usage, has_timings=self._has_timings)
        if self._prompt_logprobs is not None:
            prompt = ToldPrompt(self._occasion.prompt, told[0].findings, self._occasion.tokenizer)
            answer["prompt_logprobs"] = prompt.entries(self._prompt_logprobs)
        return to_json(answer)


def _logprobs(tokens: list[TokenText]) -> dict[str, Any]:
    return {"content": described(tokens), "refusal": None}
