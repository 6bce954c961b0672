"""/v1/messages and /v1/messages/count_tokens, asked by the anthropic package as it is."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import anthropic
import msgspec
import pytest
from anthropic.types import Message

USER = [{"role": "user", "content": "Hi"}]
ASKED = {"model": "claude-whatever", "max_tokens": 100, "messages": USER}


@pytest.fixture
def client(served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.url, api_key="unused", max_retries=0) as client:
        yield client


def strictly(message: Message) -> Message:
    """Checked, unlike what the package itself reads."""
    return Message.model_validate(message.model_dump(exclude_unset=True), strict=True)


def test_a_message_is_answered(client):
    told = client.messages.create(**ASKED, system="Be brief")
    assert told._request_id.startswith("req-")
    message = strictly(told)
    assert (message.content[0].text, message.stop_reason, message.model) == ("Hello, world!", "end_turn", "bytes")
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len("[system]Be brief[user]Hi[assistant]")
    assert (usage.cache_read_input_tokens, usage.output_tokens) == (1, len("Hello, world!") + 1)


def test_blocks_are_a_conversation_and_an_answer_can_be_sent_back(client):
    first = client.messages.create(**ASKED)
    cached = {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}
    said = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, cached]},
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": "More"},
    ]
    asked = {"messages": said, "system": [{"type": "text", "text": "Be"}], "model": "bytes"}
    conversation = "[system]Be[user]a\nb[assistant]Hello, world![user]More[assistant]"
    usage = client.messages.create(**asked, max_tokens=5).usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(conversation)
    assert client.messages.count_tokens(**asked).input_tokens == len(conversation)


def test_a_stream_is_told_in_typed_events_in_order(client):
    events = list(client.messages.create(**ASKED, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert "".join(event.delta.text for event in events[2:-3]) == "Hello, world!"


def test_a_stream_is_checked_for_a_pulse(served):
    events = served.http.post("/v1/messages", json={**ASKED, "stream": True}).text.split("\n\n")
    assert events[1] == 'event: ping\ndata: {"type":"ping"}'


def test_the_package_can_accumulate_a_stream(client):
    with client.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == "Hello, world!"
        streamed = stream.get_final_message()
    whole = client.messages.create(**ASKED)
    assert (streamed.content[0].text, streamed.stop_reason) == (whole.content[0].text, whole.stop_reason)
    assert streamed.usage.model_dump(exclude_unset=True) == whole.usage.model_dump(exclude_unset=True)


async def test_the_async_client_streams(served):
    client = anthropic.AsyncAnthropic(base_url=served.url, api_key="unused")
    async with client, client.messages.stream(**ASKED) as stream:
        assert await stream.get_final_text() == "Hello, world!"


def test_how_an_answer_ended_is_told(client):
    cut = client.messages.create(**ASKED | {"max_tokens": 3})
    assert (cut.content[0].text, cut.stop_reason, cut.stop_sequence) == ("Hel", "max_tokens", None)
    stopped = client.messages.create(**ASKED, stop_sequences=["xyz", "wor"])
    assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == ("Hello, ", "stop_sequence", "wor")


def test_sampling_reaches_the_engine(own_server):
    body = ASKED | {"temperature": 0.25, "top_p": 0.5, "top_k": 9, "seed": 7, "max_tokens": 4}
    assert own_server.http.post("/v1/messages", json=body).status_code == 200
    (order,) = own_server.engine.orders
    sampling = order.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.25, 0.5, 9, 7)
    assert order.max_tokens == 4


def test_what_has_no_effect_is_named(served):
    body = ASKED | {"metadata": {"user_id": "me"}, "cache_control": {"type": "ephemeral"}}
    answer = served.http.post("/v1/messages", json=body)
    assert answer.headers["x-headrace-ignored"] == "cache_control, metadata"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": None}, "'max_tokens'"),
        ({"max_tokens": 0}, "Expected a value >= 1"),
        ({"messages": []}, "Invalid 'messages': empty array"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "'messages[0].role'"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "type 'image'"),
        ({"messages": [{"role": "user", "content": "refuse me"}]}, "that I will not say"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "maximum context length is 512 tokens"),
        ({"container": "c"}, "does not honour it"),
        ({"temprature": 1}, "Unknown parameter: 'temprature'"),
        ({"stop_sequences": [""]}, "Invalid 'stop_sequences[0]'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "type 'web_search_20250305'"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "Invalid name 'a b'"),
        ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "'tools[0].input_schema'"),
        ({"tools": [{"name": "a", "input_schema": {}}], "tool_choice": {"type": "tool"}}, "'tool_choice'"),
        ({"tool_choice": {"type": "any"}}, "'tool_choice'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "'messages'"),
    ],
)
def test_a_bad_request_is_told_in_anthropics_shape(client, served, fields, says):
    answer = served.http.post("/v1/messages", json=ASKED | fields)
    assert answer.status_code == 400
    told = answer.json()
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert says in told["error"]["message"]
    assert told["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


def test_errors_arrive_as_the_classes_that_the_package_has_for_them(client, serve):
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(**ASKED | {"messages": []})
    assert bad.value.request_id
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**ASKED | {"model": "gpt-9"})
    with pytest.raises(anthropic.RequestTooLargeError):
        client.messages.create(**ASKED | {"system": "x" * 2**17})
    served = serve()
    served.engine.is_full = True
    other = anthropic.Anthropic(base_url=served.url, api_key="unused", max_retries=0)
    with other, pytest.raises(anthropic.APIStatusError) as full:
        other.messages.create(**ASKED)
    assert (full.value.status_code, full.value.body["error"]["type"]) == (503, "overloaded_error")
    assert full.value.response.headers["retry-after"] == "3"


def test_either_header_brings_the_key_and_a_wrong_one_is_an_authentication_error(serve):
    served = serve(api_keys=("right",))
    for key in ({"api_key": "right"}, {"auth_token": "right"}):
        with anthropic.Anthropic(base_url=served.url, **key) as client:
            assert client.messages.create(**ASKED).content[0].text == "Hello, world!"
    client = anthropic.Anthropic(base_url=served.url, api_key="wrong")
    with client, pytest.raises(anthropic.AuthenticationError) as refused:
        client.messages.create(**ASKED)
    assert refused.value.body["error"]["type"] == "authentication_error"


def test_a_fault_in_the_middle_of_a_stream_is_an_error_event(own_server):
    engine = own_server.engine
    engine.is_held = True
    with anthropic.Anthropic(base_url=own_server.url, api_key="unused", max_retries=0) as client:
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(client.messages.create, **ASKED, stream=True)
            engine.wait_until(lambda: engine.streams)
            engine.say(0, "half")
            stream = iter(opening.result(5))
        while next(stream).type != "content_block_delta":
            pass
        engine.say(0, "", finish="error", error="the row was not finite")
        with pytest.raises(anthropic.APIError, match="the row was not finite"):
            next(stream)


def test_a_resumed_stream_tells_its_fault_in_the_same_words(own_server):
    engine = own_server.engine
    engine.is_held = True
    body = json.dumps(ASKED | {"stream": True}).encode()
    with own_server.send("/v1/messages", body, "X-Headrace-Resumable: true") as connection:
        engine.wait_until(lambda: engine.streams)
        engine.say(0, "half")
        told = b""
        while b"text_delta" not in told:
            told += connection.recv(65536)
    engine.say(0, "", finish="error", error="the row was not finite")
    (stream,) = re.findall(rb"x-headrace-stream: (\w+)", told)
    with own_server.connect() as connection:
        connection.sendall(b"GET /v1/streams/%b HTTP/1.1\r\nHost: x\r\n\r\n" % stream)
        resumed = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b'event: error\ndata: {"type":"error","error":{"type":"api_error"' in resumed


WEATHER = {
    "name": "weather",
    "description": "Of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
def calling(own_server) -> Iterator[anthropic.Anthropic]:
    own_server.engine.longest = 4096  # a token is a byte, and the tool is described in words
    own_server.engine.answer = f"Let me see.\n{CALL}"
    with anthropic.Anthropic(base_url=own_server.url, api_key="unused", max_retries=0) as client:
        yield client


def test_a_tool_is_used(calling):
    message = strictly(calling.messages.create(**ASKED, tools=[WEATHER]))
    said, used = message.content
    assert (said.text, message.stop_reason) == ("Let me see.", "tool_use")
    assert (used.type, used.name, used.input) == ("tool_use", "weather", {"city": "Paris"})


def test_a_use_is_streamed_as_a_block_of_its_own(calling):
    events = list(calling.messages.create(**ASKED, tools=[WEATHER], stream=True))
    told = [event for event in events if getattr(event, "index", None) == 1]
    assert (told[0].type, told[0].content_block.name, told[-1].type) == (
        "content_block_start",
        "weather",
        "content_block_stop",
    )
    assert json.loads("".join(event.delta.partial_json for event in told[1:-1])) == {"city": "Paris"}
    with calling.messages.stream(**ASKED, tools=[WEATHER]) as stream:
        assert stream.get_final_message().content[1].input == {"city": "Paris"}


def test_a_use_that_is_cut_off_has_what_there_is_of_its_input(calling):
    message = calling.messages.create(**ASKED | {"max_tokens": len(f"Let me see.\n{CALL}") - 22}, tools=[WEATHER])
    assert message.stop_reason == "max_tokens"
    assert message.content[1].input == {"city": "P"} or message.content[1].input == {}


def test_a_use_is_sent_back_with_its_result(own_server, calling):
    first = calling.messages.create(**ASKED, tools=[WEATHER])
    result = {"type": "tool_result", "tool_use_id": first.content[1].id, "content": [{"type": "text", "text": "Rain"}]}
    said = [*USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    calling.messages.create(**ASKED | {"messages": said}, tools=[WEATHER])
    prompt = bytes(token for token in own_server.engine.orders[-1].prompt if token < 256).decode()
    assert prompt.index("Hi") < prompt.index("Let me see.") < prompt.rindex("weather") < prompt.index("Rain")
    counted = calling.messages.count_tokens(messages=said, tools=[WEATHER], model="bytes").input_tokens
    assert counted == len(own_server.engine.orders[-1].prompt)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_tool_can_have_to_be_used(own_server, calling, choice):
    calling.messages.create(**ASKED, tools=[WEATHER], tool_choice=choice)
    assert "weather" in own_server.engine.orders[-1].sampling.grammar


def test_an_answer_goes_on_with_what_is_put_into_its_mouth(own_server, client, served):
    said = [*USER, {"role": "assistant", "content": "Well,"}]
    body = {"messages": said, "max_tokens": 3}
    assert own_server.http.post("/v1/messages", json=body).status_code == 200
    prompt = bytes(token for token in own_server.engine.orders[-1].prompt if token < 256).decode()
    assert prompt.endswith("Well,")


def test_an_answer_can_have_to_be_json(own_server):
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    body = ASKED | {"output_config": {"format": form}}
    assert own_server.http.post("/v1/messages", json=body).status_code == 200
    assert own_server.engine.orders[-1].sampling.grammar


def test_reasoning_is_a_block_of_thinking(own_server):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]{# <think></think> #}"
    own_server.engine.card = msgspec.structs.replace(own_server.engine.card, chat_template=template)
    own_server.engine.answer = "<think>Hm.</think>Yes."
    with anthropic.Anthropic(base_url=own_server.url, api_key="unused", max_retries=0) as client:
        thought, said = strictly(client.messages.create(**ASKED)).content
        assert (thought.type, thought.thinking, said.text) == ("thinking", "Hm.", "Yes.")
        with client.messages.stream(**ASKED) as stream:
            assert [block.type for block in stream.get_final_message().content] == ["thinking", "text"]
        again = [*USER, {"role": "assistant", "content": [thought, said]}, *USER]
        assert client.messages.create(**ASKED | {"messages": again}).stop_reason == "end_turn"


def test_what_the_template_does_not_read_is_named_as_without_effect(served):
    for thinking in ("enabled", "adaptive"):
        body = ASKED | {"thinking": {"type": thinking}, "output_config": {"effort": "low"}}
        answer = served.http.post("/v1/messages", json=body)
        assert answer.headers["x-headrace-ignored"] == "thinking, output_config.effort"
