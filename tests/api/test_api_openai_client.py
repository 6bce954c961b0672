"""The openai package, unchanged, against the server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_a_chat_is_answered_with_its_usage(client):
    answer = client.chat.completions.create(model="bytes", messages=USER)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello, world!", "stop")
    assert answer.usage.prompt_tokens == len("[user]Hi[assistant]")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 1


def test_a_streamed_chat_says_the_same_as_an_unstreamed_one(client):
    stream = client.chat.completions.create(
        model="bytes", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, world!"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert last.choices == []
    assert last.usage == client.chat.completions.create(model="bytes", messages=USER).usage


def test_the_package_can_accumulate_a_stream(client):
    with client.chat.completions.stream(model="bytes", messages=USER) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello, world!"


def test_an_answer_can_be_sent_back_as_part_of_the_next_question(client):
    answer = client.chat.completions.create(model="bytes", messages=USER)
    again = [*USER, answer.choices[0].message, {"role": "user", "content": "More"}]
    assert client.chat.completions.create(model="bytes", messages=again).choices[0].finish_reason == "stop"


def test_completions_carry_logprobs_whose_chosen_entry_is_bit_equal(client):
    answer = client.completions.create(model="bytes", prompt="Hi", logprobs=3, max_tokens=20)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text == "".join(logprobs.tokens) == "Hello, world!"
    assert logprobs.text_offset == list(range(len(logprobs.tokens)))
    for token, figure, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == figure == max(top.values())
        assert len(top) == 3


def test_chat_logprobs_name_token_bytes_and_alternatives(client):
    answer = client.chat.completions.create(model="bytes", messages=USER, logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert [entry.token for entry in entries] == list("Hello, world!")
    assert [bytes(entry.bytes) for entry in entries] == [char.encode() for char in "Hello, world!"]
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


async def test_the_async_client_streams_completions(served):
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="unused") as client:
        stream = await client.completions.create(model="bytes", prompt="Hi", stream=True, max_tokens=5)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_models_are_listed_and_retrieved(client):
    assert [model.id for model in client.models.list()] == ["bytes"]
    assert client.models.retrieve("bytes").id == "bytes"


def test_errors_arrive_as_the_classes_that_the_package_has_for_them(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=USER)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="bytes", messages=USER, temperature=3)
    assert (bad.value.code, bad.value.param) == ("decimal_above_max_value", "temperature")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="bytes", prompt="x" * 600)
    assert long.value.code == "context_length_exceeded"


def test_an_overloaded_server_is_retried_and_then_told_of(own_server):
    own_server.engine.is_full = True
    client = openai.OpenAI(base_url=f"{own_server.url}/v1", api_key="unused", max_retries=0)
    with client, pytest.raises(openai.InternalServerError) as full:
        client.completions.create(model="bytes", prompt="Hi")
    assert full.value.status_code == 503
    assert full.value.response.headers["retry-after"] == "3"
    assert full.value.response.headers["retry-after-ms"] == "2500"
    assert full.value.response.headers["x-should-retry"] == "true"


def test_a_wrong_key_is_an_authentication_error(serve):
    served = serve(api_keys=("right",))
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.models.list()
        assert refused.value.code == "invalid_api_key"
        assert client.with_options(api_key="right").models.list().data[0].id == "bytes"


def test_a_fault_in_the_middle_of_a_stream_raises_instead_of_ending_early(own_server):
    engine = own_server.engine
    engine.is_held = True
    with openai.OpenAI(base_url=f"{own_server.url}/v1", api_key="unused", max_retries=0) as client:
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(client.completions.create, model="bytes", prompt="Hi", stream=True)
            engine.wait_until(lambda: engine.streams)
            engine.say(0, "half")
            stream = iter(opening.result(5))
        assert next(stream).choices[0].text == "half"
        engine.say(0, "", finish="error", error="the row was not finite")
        with pytest.raises(openai.APIError, match="the row was not finite"):
            next(stream)
