"""/v1/responses, asked by the openai package as it is and read as strictly as its types allow."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

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


WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def prompt_of(served) -> str:
    """Of the last order."""
    return bytes(token for token in served.engine.orders[-1].prompt if token < 256).decode()


@pytest.fixture
def calling(own_server) -> Iterator[openai.OpenAI]:
    own_server.engine.longest = 4096  # a token is a byte, and the tool is described in words
    own_server.engine.answer = f"Let me see.\n{CALL}"
    with openai.OpenAI(base_url=f"{own_server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_a_function_is_called(calling):
    response = strictly(calling.responses.create(input="How is it in Paris?", tools=[WEATHER]))
    said, called = response.output
    assert (response.output_text, response.status, said.type) == ("Let me see.", "completed", "message")
    assert (called.type, called.name, json.loads(called.arguments)) == ("function_call", "weather", {"city": "Paris"})
    assert called.call_id
    assert response.tools[0].name == "weather"
    assert response.tool_choice == "auto"


def test_a_call_is_streamed_as_an_item_of_its_own(calling):
    events = list(calling.responses.create(input="How is it in Paris?", tools=[WEATHER], stream=True))
    for event in events:
        EVENTS.validate_python(event.model_dump(by_alias=True, exclude_unset=True), strict=True)
    told = [event for event in events if getattr(event, "output_index", None) == 1]
    kinds = [event.type.removeprefix("response.") for event in told]
    assert kinds[0] == "output_item.added"
    assert kinds[-2:] == ["function_call_arguments.done", "output_item.done"]
    assert set(kinds[1:-2]) == {"function_call_arguments.delta"}
    assert json.loads("".join(event.delta for event in told[1:-2])) == {"city": "Paris"}
    assert told[-1].item == events[-1].response.output[1]


def test_the_package_parses_a_streamed_call(calling):
    with calling.responses.stream(model="bytes", input="How is it in Paris?", tools=[WEATHER]) as stream:
        final = stream.get_final_response()
    assert final.output[1].parsed_arguments == {"city": "Paris"}


def test_a_call_is_sent_back_with_what_it_gave(own_server, calling):
    asked = {"role": "user", "content": "How is it in Paris?"}
    first = calling.responses.create(input=[asked], tools=[WEATHER])
    output = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "Rain"}
    calling.responses.create(input=[asked, *first.output, output], tools=[WEATHER])
    prompt = prompt_of(own_server)
    assert "Let me see." in prompt
    assert prompt.index("How is it") < prompt.index("Let me see.") < prompt.rindex("weather") < prompt.index("Rain")


def test_a_named_function_has_to_be_called(own_server, calling):
    calling.responses.create(input="Hi", tools=[WEATHER], tool_choice={"type": "function", "name": "weather"})
    assert "weather" in own_server.engine.orders[-1].sampling.grammar
    calling.responses.create(input="Hi", tools=[WEATHER], tool_choice="none")
    assert own_server.engine.orders[-1].sampling.grammar is None


def test_an_answer_can_have_to_be_json(own_server):
    class City(BaseModel):
        name: str

    own_server.engine.answer = '{"name": "Paris"}'
    with openai.OpenAI(base_url=f"{own_server.url}/v1", api_key="unused") as client:
        response = client.responses.parse(input="Name a city", text_format=City)
    assert response.output_parsed == City(name="Paris")
    assert response.text.format.type == "json_schema"
    assert own_server.engine.orders[-1].sampling.grammar


def test_reasoning_is_an_item_before_the_message(thinking):
    response = strictly(thinking.responses.create(input="Hi", top_logprobs=0))
    thought, said = response.output
    assert (thought.type, thought.content[0].text, response.output_text) == ("reasoning", "Hm.", "Yes.")
    assert response.usage.output_tokens_details.reasoning_tokens == len("<think>Hm.</think>")
    assert said.content[0].logprobs
    events = list(thinking.responses.create(input="Hi", stream=True))
    for event in events:
        EVENTS.validate_python(event.model_dump(by_alias=True, exclude_unset=True), strict=True)
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "Hm."
    assert events[-1].response.output_text == "Yes."


def test_reasoning_is_sent_back(own_server, thinking):
    first = thinking.responses.create(input="Hi")
    thinking.responses.create(
        input=[{"role": "user", "content": "Hi"}, *first.output, {"role": "user", "content": "?"}]
    )
    assert prompt_of(own_server) == "[user]Hi[assistant](Hm.)Yes.[user]?[assistant]"


@pytest.fixture
def thinking(own_server) -> Iterator[openai.OpenAI]:
    """Its template shows the reasoning of earlier turns, and has the mark that ends one."""
    turn = "[{{ m.role }}]{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    template = "{% for m in messages %}" + turn + "{% endfor %}[assistant]{# <think></think> #}"
    own_server.engine.card = msgspec.structs.replace(own_server.engine.card, chat_template=template)
    own_server.engine.answer = "<think>Hm.</think>Yes."
    with openai.OpenAI(base_url=f"{own_server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_what_the_template_does_not_read_is_named_as_without_effect(served):
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]}
    said = [thought, {"role": "assistant", "content": "A"}, {"role": "user", "content": "B"}]
    answer = served.http.post("/v1/responses", json={"input": said, "reasoning": {"effort": "low"}})
    assert answer.status_code == 200, answer.text
    ignored = answer.headers["x-headrace-ignored"].split(", ")
    assert {"input.content", "reasoning.effort"} <= set(ignored)
