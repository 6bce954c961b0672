"""/v1/responses, asked by the openai package as it is and read as strictly as its types allow."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

EVENTS = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
def client(served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def strictly(response: Response) -> Response:
    """Checked, unlike what the package itself reads."""
    return Response.model_validate(response.model_dump(by_alias=True, exclude_unset=True), strict=True)


def test_a_text_is_answered(client):
    response = strictly(client.responses.create(model="bytes", input="Hi", instructions="Be brief"))
    assert (response.output_text, response.status, response.instructions) == ("Hello, world!", "completed", "Be brief")
    assert response.usage.input_tokens == len("[system]Be brief[user]Hi[assistant]")
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.input_tokens_details.cached_tokens == 1


def test_items_are_a_conversation_and_an_answer_can_be_sent_back(client):
    first = client.responses.create(input="Hi")
    said = [
        {"role": "developer", "content": "Be"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        *first.output,
        {"role": "user", "content": "More"},
    ]
    response = client.responses.create(input=said)
    conversation = "[system]Be[user]a\nb[assistant]Hello, world![user]More[assistant]"
    assert response.usage.input_tokens == len(conversation)


def test_a_stream_is_told_in_typed_events_in_order(client):
    events = list(client.responses.create(input="Hi", stream=True))
    for event in events:
        EVENTS.validate_python(event.model_dump(by_alias=True, exclude_unset=True), strict=True)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for place, kind in enumerate(kinds) if kind not in kinds[:place]] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello, world!"
    whole = client.responses.create(input="Hi")
    last = events[-1].response
    assert (last.output_text, last.usage, last.status) == (whole.output_text, whole.usage, "completed")


def test_the_package_can_accumulate_a_stream(client):
    with client.responses.stream(model="bytes", input="Hi") as stream:
        assert [event.snapshot for event in stream if event.type == "response.output_text.delta"][-1] == "Hello, world!"
        assert stream.get_final_response().output_text == "Hello, world!"


async def test_the_async_client_streams(served):
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="unused")
    async with client, client.responses.stream(model="bytes", input="Hi") as stream:
        final = await stream.get_final_response()
    assert final.output_text == "Hello, world!"


def test_what_is_cut_off_is_incomplete(client):
    response = strictly(client.responses.create(input="Hi", max_output_tokens=3))
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output_text, response.output[0].status) == ("Hel", "incomplete")
    *_, last = client.responses.create(input="Hi", max_output_tokens=3, stream=True)
    assert (last.type, last.response.usage) == ("response.incomplete", response.usage)


def test_an_empty_answer_is_a_message_without_text(own_server):
    own_server.engine.answer = ""
    with openai.OpenAI(base_url=f"{own_server.url}/v1", api_key="unused") as client:
        assert strictly(client.responses.create(input="Hi")).output[0].content[0].text == ""
        *_, last = client.responses.create(input="Hi", stream=True)
    assert last.response.output[0].content[0].text == ""


def test_log_probabilities_are_told_where_asked_for(client):
    response = strictly(client.responses.create(input="Hi", include=["message.output_text.logprobs"], top_logprobs=2))
    logprobs = response.output[0].content[0].logprobs
    assert "".join(entry.token for entry in logprobs) == "Hello, world!"
    assert all(len(entry.top_logprobs) == 2 and entry.top_logprobs[0].logprob == entry.logprob for entry in logprobs)
    assert not client.responses.create(input="Hi").output[0].content[0].logprobs


def test_the_request_is_repeated_in_the_answer(client):
    response = client.responses.create(input="Hi", metadata={"a": "b"}, temperature=0.5, top_p=0.9, store=True)
    assert (response.metadata, response.temperature, response.top_p) == ({"a": "b"}, 0.5, 0.9)
    assert response.store is False


def test_what_has_no_effect_is_named(served):
    body = {"input": [{"role": "user", "content": "Hi", "status": "completed"}], "store": True, "user": "me"}
    answer = served.http.post("/v1/responses", json=body)
    assert answer.headers["x-headrace-ignored"] == "store, user, input.status"


def test_sampling_reaches_the_engine(own_server):
    body = {"input": "Hi", "temperature": 0.25, "top_p": 0.5, "seed": 7, "max_output_tokens": 4}
    assert own_server.http.post("/v1/responses", json=body).status_code == 200
    (order,) = own_server.engine.orders
    assert (order.sampling.temperature, order.sampling.top_p, order.sampling.seed) == (0.25, 0.5, 7)
    assert order.max_tokens == 4


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"input": "refuse me"}, "input", "that I will not say"),
        ({"input": "x" * 600}, "input", "reduce the length of the input"),
        ({"input": "Hi", "max_output_tokens": 1000}, "max_output_tokens", "1000 in the completion"),
    ],
)
def test_faults_name_the_fields_of_this_endpoint(served, fields, param, says):
    error = served.http.post("/v1/responses", json=fields).json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_a_fault_in_the_middle_of_a_stream_is_a_failed_response(own_server):
    engine = own_server.engine
    engine.is_held = True
    with openai.OpenAI(base_url=f"{own_server.url}/v1", api_key="unused", max_retries=0) as client:
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(client.responses.create, input="Hi", stream=True)
            engine.wait_until(lambda: engine.streams)
            engine.say(0, "half")
            stream = iter(opening.result(5))
        while next(stream).type != "response.output_text.delta":
            pass
        engine.say(0, "", finish="error", error="the row was not finite")
        failed = next(stream)
        assert failed.type == "response.failed"
        assert strictly(failed.response).error.code == "server_error"
        assert "the row was not finite" in failed.response.error.message
        assert failed.response.output_text == "half"
        with pytest.raises(openai.APIError):
            next(stream)
