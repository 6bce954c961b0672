"""What answers look like, for the API's description. Nothing is built from these; tests hold answers against them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue


class Shape(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Fault(Shape):
    message: str
    """For people; it may change."""
    type: str
    """The kind of fault, such as `invalid_request_error`."""
    param: str | None
    """The field at fault, as a path such as `messages[0].content`."""
    code: str | None
    """For programs; it stays."""


class Error(Shape):
    error: Fault


class AnthropicFault(Shape):
    type: str
    message: str


class AnthropicError(Shape):
    type: Literal["error"]
    error: AnthropicFault
    request_id: str | None


class Cached(Shape):
    cached_tokens: int
    """Of the prompt's tokens, those whose keys and values were kept from an earlier request."""


class Thought(Shape):
    reasoning_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    """Of all choices, the tokens that ended them included."""
    total_tokens: int
    prompt_tokens_details: Cached
    completion_tokens_details: Thought


class Timings(Shape):
    queue_ms: float
    """Until the first of the request's sequences was computed."""
    cache_n: int
    prompt_n: int
    """Tokens of the prompts that had to be computed."""
    prompt_ms: float
    """From there to the first token."""
    prompt_per_second: float | None
    predicted_n: int
    predicted_ms: float
    """From there to the last token."""
    predicted_per_second: float | None
    """Without each choice's first token."""


class Alternative(Shape):
    token: str
    logprob: float
    """Natural logarithm of the model's own probability, before penalties and temperature."""
    bytes: list[int]


class TokenLogprob(Alternative):
    top_logprobs: list[Alternative]


class ChatLogprobs(Shape):
    content: list[TokenLogprob] | None
    refusal: None


class CalledFunction(Shape):
    name: str
    arguments: str
    """JSON text."""


class ToolCall(Shape):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Shape):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Shape):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] | None = None


class Answer(Shape):
    id: str
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str
    """A digest of all that decides an answer but the request: server, weights, template, tokenizer, kernels."""


class PromptLogprob(Shape):
    logprob: float
    rank: int
    """1 is the likeliest."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # by token id; null for the first token


class ChatCompletion(Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Delta(Shape):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChunkChoice(Shape):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    token_ids: list[int] | None = None


class ChatCompletionChunk(Answer):
    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    """Empty in the event that has the usage."""
    usage: Usage | None = None
    timings: Timings | None = None


class CompletionLogprobs(Shape):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where each token begins, in characters."""


class CompletionChoice(Shape):
    index: int
    """Prompt i's choice j has index i * n + j."""
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    """null in all events of a stream but a choice's last."""
    token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(Answer):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None
    timings: Timings | None = None


class InputDetails(Shape):
    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(Shape):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: Thought
    total_tokens: int


class Response(Shape):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    incomplete_details: dict[str, str] | None
    error: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    """Items of type `message`, `reasoning` and `function_call`, in order."""
    usage: ResponseUsage | None
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: JsonValue
    parallel_tool_calls: bool
    metadata: dict[str, str]
    truncation: Literal["disabled"]
    background: Literal[False]
    store: Literal[False]


class ResponseEvent(Shape):
    type: str
    """The event's name as well, such as `response.output_text.delta`."""
    sequence_number: int


class MessageUsage(Shape):
    input_tokens: int
    """Without those from the cache."""
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int


class AnthropicMessage(Shape):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    """Blocks of type `text`, `thinking` and `tool_use`, in order."""
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(Shape):
    type: str
    """The event's name as well, such as `content_block_delta`."""


class Embedding(Shape):
    object: Literal["embedding"]
    index: int
    """The input's place."""
    embedding: list[float] | str
    """Of length 1; a string is base64 of fp32, little-endian."""


class EmbeddingUsage(Shape):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Shape):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class PredicateAnswer(Shape):
    type: Literal["predicate"]
    name: str | None
    probability: float


class ValueProbability(Shape):
    value: str | bool
    probability: float


class ChoiceAnswer(Shape):
    type: Literal["choice"]
    name: str | None
    choice: str | bool
    confidence: float
    """The probability of the choice."""
    probabilities: list[ValueProbability]


class LevelProbability(Shape):
    label: str
    value: int
    """The level's place, from 0 for the lowest."""
    probability: float


class ScoreAnswer(Shape):
    type: Literal["score"]
    name: str | None
    score: float
    """The mean of the levels' places."""
    confidence: float
    """The probability of the likeliest level."""
    probabilities: list[LevelProbability]


class Decision(Shape):
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    """In the order of the questions."""
    model: str
    usage: ResponseUsage
    """Of every possible answer after its question; most of that comes from the cache."""


class TokenCount(Shape):
    input_tokens: int


class Model(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    """The model's own name, or the name of an adapter's folder."""
    parent: str | None
    """Of an adapter, the model that it adds to."""
    max_model_len: int
    """Tokens of prompt and answer together."""


class DeletedModel(Shape):
    id: str
    object: Literal["model"]
    deleted: bool


class Models(Shape):
    object: Literal["list"]
    data: list[Model]


class Tokens(Shape):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DecodedText(Shape):
    prompt: str


class TokenizerInfo(Shape):
    model_max_length: int
    vocab_size: int
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    eos_token_ids: list[int]
    """All that end an answer."""


class Version(Shape):
    version: str


class Health(Shape):
    status: str


class Capabilities(Shape):
    version: str
    model: dict[str, Any]
    endpoints: dict[str, dict[str, Any]]
    """By path, and under `parameters` each field: types, bounds, what it is where it is left out, effect."""
