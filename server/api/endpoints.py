"""What each endpoint answers, and examples of what it takes, for the API's description."""

from dataclasses import dataclass, field
from typing import Any

from server.api import shapes

_USER = {"role": "user", "content": "What is the capital of France?"}
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_WEATHER = {"role": "user", "content": "How is the weather in Paris?"}
_FUNCTION = {"name": "weather", "description": "Today's weather in a city.", "parameters": _SCHEMA}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    group: str
    answer: type[shapes.Shape] | None = None  # None: no JSON
    event: type[shapes.Shape] | None = None
    stream: str = ""  # how an event stream goes, in words
    faults: tuple[int, ...]  # statuses beside 200
    examples: dict[str, dict[str, Any]] = field(default_factory=dict)  # bodies, by what they show

    @property
    def ends_with_done(self) -> bool:
        """Whether the last event's data are no JSON, but OpenAI's word for it."""
        return self.event in (shapes.ChatCompletionChunk, shapes.Completion)


_GENERATING = "Generating"
_READING = "Reading"
_TOKENS = "Tokens"
_SERVER = "The server"
_ASKED = (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)
_READ = (400, 401, 404, 408, 413, 415, 503)
_TOLD = (401, 503)
_CHUNKS = (
    "Chunks, one a line `data: {...}`; `data: [DONE]` ends the stream. A fault ends it with an `error` object and "
    "without that line."
)

ENDPOINTS = {
    "/v1/chat/completions": Endpoint(
        faults=_ASKED,
        group=_GENERATING,
        answer=shapes.ChatCompletion,
        event=shapes.ChatCompletionChunk,
        stream=_CHUNKS,
        examples={
            "A question": {"messages": [_USER], "temperature": 0, "max_tokens": 64},
            "A stream with its usage": {
                "messages": [{"role": "system", "content": "Be brief."}, _USER],
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": 64,
            },
            "Two choices with log probabilities": {
                "messages": [_USER],
                "n": 2,
                "seed": 7,
                "top_p": 0.9,
                "logprobs": True,
                "top_logprobs": 3,
                "stop": ["\n"],
                "max_tokens": 16,
            },
            "A tool": {
                "messages": [_WEATHER],
                "tools": [{"type": "function", "function": _FUNCTION}],
                "tool_choice": "required",
                "max_tokens": 64,
            },
            "JSON by a schema": {
                "messages": [_USER],
                "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": _SCHEMA}},
                "max_tokens": 64,
            },
        },
    ),
    "/v1/completions": Endpoint(
        faults=_ASKED,
        group=_GENERATING,
        answer=shapes.Completion,
        event=shapes.Completion,
        stream=_CHUNKS,
        examples={
            "A text to continue": {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0.8, "seed": 7},
            "Several at once": {"prompt": ["Once", "Twice"], "max_tokens": 8, "echo": True},
            "Token ids": {"prompt": [1, 2, 3], "max_tokens": 4, "logprobs": 2},
            "How likely a text is": {"prompt": "All is well.", "max_tokens": 0, "echo": True, "logprobs": 1},
        },
    ),
    "/v1/responses": Endpoint(
        faults=_ASKED,
        group=_GENERATING,
        answer=shapes.Response,
        event=shapes.ResponseEvent,
        stream="Events with a name, numbered by `sequence_number`, from `response.created` to `response.completed`, "
        "`response.incomplete` or `response.failed`, each of which has the response as it then is.",
        examples={
            "A question": {"input": "What is the capital of France?", "max_output_tokens": 64},
            "A conversation, streamed": {
                "instructions": "Be brief.",
                "input": [
                    {"role": "user", "content": "Name a city."},
                    {"role": "assistant", "content": "Paris."},
                    {"role": "user", "content": [{"type": "input_text", "text": "Another."}]},
                ],
                "stream": True,
                "max_output_tokens": 16,
            },
            "A function": {
                "input": [_WEATHER],
                "tools": [{"type": "function", **_FUNCTION}],
                "tool_choice": "required",
                "max_output_tokens": 64,
            },
            "JSON by a schema": {
                "input": "What is the capital of France?",
                "text": {"format": {"type": "json_schema", "name": "place", "schema": _SCHEMA}},
                "max_output_tokens": 64,
            },
        },
    ),
    "/v1/messages": Endpoint(
        faults=_ASKED,
        group=_GENERATING,
        answer=shapes.AnthropicMessage,
        event=shapes.MessageEvent,
        stream="Events with a name: `message_start`, `ping`, for a block `content_block_start`, `content_block_delta`, "
        "`content_block_stop`, then `message_delta` and `message_stop`; or `error`, which ends the stream.",
        examples={
            "A question": {"model": "claude-any", "messages": [_USER], "max_tokens": 64},
            "A stream": {
                "system": [{"type": "text", "text": "Be brief."}],
                "messages": [_USER],
                "max_tokens": 64,
                "stop_sequences": ["\n"],
                "stream": True,
            },
            "A tool": {
                "messages": [_WEATHER],
                "tools": [{"name": "weather", "description": "Today's weather in a city.", "input_schema": _SCHEMA}],
                "tool_choice": {"type": "any"},
                "max_tokens": 64,
            },
        },
    ),
    "/v1/embeddings": Endpoint(
        faults=_ASKED,
        group=_READING,
        answer=shapes.Embeddings,
        examples={
            "Two texts": {"input": ["A cat sleeps.", "A dog barks."]},
            "Token ids, the last hidden state": {"input": [1, 2, 3], "pooling": "last", "encoding_format": "base64"},
        },
    ),
    "/v1/decisions": Endpoint(
        faults=_ASKED,
        group=_READING,
        answer=shapes.Decision,
        examples={
            "All kinds of questions": {
                "input": "The tap in the kitchen drips all night.",
                "questions": [
                    {"type": "predicate", "instructions": "Something is broken."},
                    {
                        "type": "choice",
                        "name": "trade",
                        "instructions": "Who should come?",
                        "choices": [{"value": "plumber", "description": "pipes and taps"}, {"value": "baker"}],
                    },
                    {
                        "type": "score",
                        "instructions": "How urgent is it?",
                        "levels": [{"label": "not at all"}, {"label": "somewhat"}, {"label": "very"}],
                    },
                ],
            },
        },
    ),
    "/v1/streams/{id}": Endpoint(
        faults=(400, 401, 404, 409),
        group=_GENERATING,
        event=shapes.ChatCompletionChunk,
        stream="The events as they were when they were new, with their ids.",
    ),
    "/v1/messages/count_tokens": Endpoint(
        faults=_READ,
        group=_TOKENS,
        answer=shapes.TokenCount,
        examples={"A question": {"messages": [_USER], "system": "Be brief."}},
    ),
    "/tokenize": Endpoint(
        faults=_READ,
        group=_TOKENS,
        answer=shapes.Tokens,
        examples={
            "A text": {"prompt": "Hello", "return_token_strs": True},
            "A conversation": {"messages": [_USER]},
        },
    ),
    "/detokenize": Endpoint(
        faults=_READ, group=_TOKENS, answer=shapes.DecodedText, examples={"Token ids": {"tokens": [1, 2, 3]}}
    ),
    "/tokenizer_info": Endpoint(faults=_TOLD, group=_TOKENS, answer=shapes.TokenizerInfo),
    "/v1/models": Endpoint(faults=_TOLD, group=_SERVER, answer=shapes.Models),
    "/v1/models/{model_id}": Endpoint(faults=(401, 404, 503), group=_SERVER, answer=shapes.Model),
    "/v1/load_lora_adapter": Endpoint(faults=(400, 401, 403, 413, 415, 503), group=_SERVER, answer=shapes.Model),
    "/v1/unload_lora_adapter": Endpoint(
        faults=(400, 401, 403, 404, 413, 415), group=_SERVER, answer=shapes.DeletedModel
    ),
    "/v1/capabilities": Endpoint(faults=_TOLD, group=_SERVER, answer=shapes.Capabilities),
    "/version": Endpoint(faults=(401,), group=_SERVER, answer=shapes.Version),
    "/health": Endpoint(faults=(503,), group=_SERVER, answer=shapes.Health),
    "/health/live": Endpoint(faults=(503,), group=_SERVER, answer=shapes.Health),
    "/health/ready": Endpoint(faults=(503,), group=_SERVER, answer=shapes.Health),
    "/health/startup": Endpoint(faults=(503,), group=_SERVER, answer=shapes.Health),
    "/metrics": Endpoint(faults=(401,), group=_SERVER),
}
