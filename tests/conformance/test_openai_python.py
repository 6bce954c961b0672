"""openai for Python, unchanged, against a real server with the default model."""

import json
from collections.abc import Iterator
from typing import Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from support import RunningServer

ASKED = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."


LOOK_UP = {
    "name": "look_up",
    "description": "Looks a city up.",
    "parameters": {
        "type": "object",
        "properties": {
            "continent": {"enum": ["Africa", "America", "Asia", "Europe"]},
            "is_capital": {"type": "boolean"},
        },
        "required": ["continent", "is_capital"],
        "additionalProperties": False,
    },
}
TOOLS = {"tools": [{"type": "function", "function": LOOK_UP}], "tool_choice": "required", "parallel_tool_calls": False}


class City(BaseModel):
    is_capital: bool
    continent: Literal["Africa", "America", "Asia", "Europe"]


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.proves("answers")
def test_a_question_is_answered_and_counted(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=ASKED, temperature=0)
    assert answer.choices[0].message.content == PARIS
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == model
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


@pytest.mark.proves("answers")
async def test_the_async_client_is_told_the_same(base_url: str, model: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
        answer = await client.chat.completions.create(model=model, messages=ASKED, temperature=0)
    assert answer.choices[0].message.content == PARIS


@pytest.mark.proves("answers")
def test_choices_and_their_logprobs(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": ASKED, "max_completion_tokens": 5, "seed": 7}
    answer = client.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
        assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


@pytest.mark.proves("answers")
def test_an_answer_goes_back_as_it_came_into_the_next_question(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=ASKED, temperature=0)
    more = [*ASKED, answer.choices[0].message, {"role": "user", "content": "And of Italy?"}]
    again = client.chat.completions.create(model=model, messages=more, temperature=0, max_tokens=12)
    assert again.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.proves("answers")
def test_prompts_in_a_batch_are_completed_in_their_order(client: OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt=["One, two, three,", "The capital of France is"], max_tokens=4, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.text.split()[0] for choice in answer.choices] == ["four,", "Paris."]


@pytest.mark.proves("answers")
def test_the_model_is_listed_and_retrieved(client: OpenAI, model: str) -> None:
    assert model in [each.id for each in client.models.list()]
    assert client.models.retrieve(model).id == model


@pytest.mark.proves("streams")
def test_a_stream_says_what_a_whole_answer_says(client: OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model, messages=ASKED, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == PARIS
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage.completion_tokens > 0


@pytest.mark.proves("streams")
async def test_the_async_client_streams(base_url: str, model: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
        stream = await client.chat.completions.create(model=model, messages=ASKED, temperature=0, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == PARIS


@pytest.mark.proves("streams")
def test_the_stream_helper_gathers_the_whole_answer(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=ASKED, temperature=0) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == PARIS
    assert {"chunk", "content.delta", "content.done"} <= kinds


@pytest.mark.proves("streams")
def test_a_stream_can_be_left(client: OpenAI, model: str, server: RunningServer) -> None:
    stream = client.completions.create(model=model, prompt="Once", max_tokens=2000, stream=True)
    next(iter(stream))
    stream.close()
    assert client.completions.create(model=model, prompt="Once", max_tokens=1).choices[0].text


@pytest.mark.proves("answers")
def test_a_response_is_told_whole_and_as_a_stream(client: OpenAI, model: str) -> None:
    asked = {"model": model, "input": ASKED[0]["content"], "temperature": 0}
    assert client.responses.create(**asked).output_text == PARIS
    events = list(client.responses.create(**asked, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == PARIS
    assert events[-1].response.output_text == PARIS


@pytest.mark.proves("tools")
def test_a_tool_is_called_and_its_result_goes_back(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=ASKED, temperature=0, **TOOLS)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look_up"
    assert json.loads(call.function.arguments).keys() == {"continent", "is_capital"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "Paris"}
    more = [*ASKED, answer.choices[0].message, result]
    again = client.chat.completions.create(
        model=model, messages=more, temperature=0, tools=TOOLS["tools"], max_tokens=9
    )
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens


@pytest.mark.proves("tools")
def test_a_call_comes_in_pieces_that_make_the_whole_one(client: OpenAI, model: str) -> None:
    asked = {"model": model, "messages": ASKED, "temperature": 0, **TOOLS}
    (whole,) = client.chat.completions.create(**asked).choices[0].message.tool_calls
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    (gathered,) = final.choices[0].message.tool_calls
    assert (gathered.function.name, gathered.function.arguments) == (whole.function.name, whole.function.arguments)
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.proves("tools")
def test_a_tool_is_called_in_a_response(client: OpenAI, model: str) -> None:
    asked = {"input": ASKED[0]["content"], "tools": [{"type": "function", **LOOK_UP}], "tool_choice": "required"}
    answer = client.responses.create(model=model, temperature=0, parallel_tool_calls=False, **asked)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "look_up"


@pytest.mark.proves("structured")
@pytest.mark.parametrize("is_beta", [False, True])
def test_an_answer_is_parsed_into_a_model_of_pydantic(client: OpenAI, model: str, is_beta: bool) -> None:
    chat = client.beta.chat if is_beta else client.chat
    answer = chat.completions.parse(model=model, messages=ASKED, temperature=0, response_format=City)
    assert isinstance(answer.choices[0].message.parsed, City)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.proves("structured")
def test_a_streamed_answer_is_parsed_at_its_end(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=ASKED, temperature=0, response_format=City) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, City)


@pytest.mark.proves("structured")
def test_a_response_is_parsed_into_a_model_of_pydantic(client: OpenAI, model: str) -> None:
    answer = client.responses.parse(model=model, input=ASKED[0]["content"], temperature=0, text_format=City)
    assert isinstance(answer.output_parsed, City)


@pytest.mark.proves("structured")
def test_a_schema_that_cannot_be_honoured_is_refused_by_its_name(client: OpenAI, model: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=ASKED, response_format=schema)
    assert refused.value.param.startswith("response_format.json_schema")


@pytest.mark.proves("embeddings")
def test_vectors_are_the_same_as_numbers_and_in_the_packages_own_base64(client: OpenAI, model: str) -> None:
    asked = {"model": model, "input": ["Paris", "Rome"]}
    packed = client.embeddings.create(**asked)
    plain = client.embeddings.create(**asked, encoding_format="float")
    assert [each.index for each in packed.data] == [0, 1]
    for ours, theirs in zip(packed.data, plain.data, strict=True):
        assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-7)
        assert sum(number**2 for number in ours.embedding) == pytest.approx(1, abs=1e-5)
    assert packed.usage.prompt_tokens > 0


@pytest.mark.proves("embeddings")
def test_vectors_have_the_dimensions_asked_for(client: OpenAI, model: str) -> None:
    answer = client.embeddings.create(model=model, input="Paris", dimensions=64)
    assert len(answer.data[0].embedding) == 64


@pytest.mark.proves("errors")
@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"temperature": 3}, openai.BadRequestError, "decimal_above_max_value", "temperature"),
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "model"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "context_length_exceeded", "max_tokens"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "unknown_parameter", "temprature"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_refusal_is_the_packages_own_error(
    client: OpenAI, model: str, fields: dict, kind: type, code: str, param: str, is_streamed: bool
) -> None:
    with pytest.raises(kind) as refused:
        client.chat.completions.create(**{"model": model, "messages": ASKED, "stream": is_streamed} | fields)
    assert (refused.value.code, refused.value.param) == (code, param)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id


@pytest.mark.proves("errors")
def test_a_body_that_is_too_large_is_told_before_it_is_read(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(model=model, prompt="x" * 9 * 2**20)
    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")


@pytest.mark.proves("errors")
def test_a_server_that_is_not_there_is_a_connection_error(model: str) -> None:
    with (
        OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.completions.create(model=model, prompt="Hi")


@pytest.mark.proves("errors")
def test_a_server_that_is_slower_than_the_client_waits_is_a_timeout(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05).completions.create(model=model, prompt="Hi", max_tokens=2000)


@pytest.mark.proves("retries")
def test_a_full_server_is_asked_again_after_the_time_it_names(busy_server: RunningServer) -> None:
    with OpenAI(base_url=f"{busy_server.url}/v1", api_key="none", max_retries=10) as client:
        answer = client.completions.with_raw_response.create(model="narrow", prompt="Hi", max_tokens=1)
    assert answer.retries_taken >= 1
    assert answer.parse().choices[0].finish_reason == "length"
