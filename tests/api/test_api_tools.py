"""Tools and reasoning through the API, of models that say what the test wants in the way of their template."""

import json
from collections.abc import Iterator
from typing import Any

import chat_templates as templates
import msgspec
import openai
import pytest

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("weather", "tide")]
HI = [{"role": "user", "content": "Hi"}]
ROME = '{"city": "Rome"}'
SAID = {
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>',
    "llama": f'{{"name": "weather", "parameters": {ROME}}}',
    "mistral": f'[TOOL_CALLS][{{"name": "weather", "arguments": {ROME}}}]',
    "mistral_args": f"[TOOL_CALLS]weather[ARGS]{ROME}",
    "pythonic": '[weather(city="Rome")]',
}
SOURCES = {
    "hermes": templates.HERMES,
    "llama": templates.LLAMA,
    "mistral": templates.MISTRAL,
    "mistral_args": templates.MISTRAL_ARGS,
    "pythonic": templates.PYTHONIC,
    "text": templates.PLAIN,
    "reasoning": templates.REASONING,
}


@pytest.fixture(scope="module")
def served_as(start_server):
    """A server for each template, whose engine says what it is told to."""
    servers = {}

    def get(kind: str, says: str):
        if kind not in servers:
            served = servers[kind] = start_server()
            served.engine.longest = 4096
            served.engine.card = msgspec.structs.replace(
                served.engine.card, chat_template=SOURCES[kind], context_length=4096
            )
        servers[kind].start_anew()
        servers[kind].engine.answer = says
        return servers[kind]

    return get


def ask(served, **fields: Any) -> dict[str, Any]:
    answer = served.http.post("/v1/chat/completions", json={"messages": HI, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def deltas(served, **fields: Any) -> Iterator[dict[str, Any]]:
    answer = served.http.post("/v1/chat/completions", json={"messages": HI, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    for frame in answer.text.split("\n\n")[:-2]:
        yield from json.loads(frame.removeprefix("data: "))["choices"]


def prompt_of(served) -> str:
    return bytes(token for token in served.engine.orders[-1].prompt if token < 256).decode()


@pytest.mark.parametrize("kind", SAID)
def test_a_call_in_the_models_own_syntax_is_told_as_a_call(served_as, kind: str) -> None:
    served = served_as(kind, SAID[kind])
    (choice,) = ask(served, tools=TOOLS)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "weather", "arguments": ROME})
    assert served.engine.orders[-1].sampling.grammar is not None
    assert '"weather"' in prompt_of(served)
    again = [*HI, choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    ask(served, messages=again, tools=TOOLS)
    assert "Rome" in prompt_of(served)
    assert "sunny" in prompt_of(served)


@pytest.mark.parametrize("kind", SAID)
def test_a_streamed_call_begins_with_its_name_and_adds_up_to_the_same(served_as, kind: str) -> None:
    _, *choices = deltas(served_as(kind, SAID[kind]), tools=TOOLS)
    *told, last = choices
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")
    (begin,) = told[0]["delta"]["tool_calls"]
    assert begin["id"]
    assert begin | {"id": ""} == {
        "index": 0,
        "id": "",
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    rest = [piece for choice in told[1:] for piece in choice["delta"]["tool_calls"]]
    assert all(piece.keys() == {"index", "function"} for piece in rest)
    assert "".join(piece["function"]["arguments"] for piece in rest) == ROME


def test_a_model_whose_template_knows_no_tools_is_told_of_them_in_text(served_as) -> None:
    served = served_as("text", "Let me see.\n" + SAID["hermes"])
    (choice,) = ask(served, tools=TOOLS)["choices"]
    assert choice["message"]["content"] == "Let me see."
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == ROME
    assert prompt_of(served).startswith("[system]# Tools\n")


def test_no_tool_is_called_where_none_may_be(served_as) -> None:
    served = served_as("hermes", SAID["hermes"])
    (choice,) = ask(served, tools=TOOLS, tool_choice="none")["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (SAID["hermes"], "stop")
    assert "weather" not in prompt_of(served)
    assert served.engine.orders[-1].sampling.grammar is None


def test_what_is_no_call_is_text(served_as) -> None:
    for said in ("Hello <tool_call> there", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'):
        (choice,) = ask(served_as("hermes", said), tools=TOOLS)["choices"]
        assert choice["message"] == {"role": "assistant", "content": said, "refusal": None}
        assert choice["finish_reason"] == "stop"
        told = list(deltas(served_as("hermes", said), tools=TOOLS))
        assert "".join(choice["delta"].get("content", "") for choice in told) == said


def test_which_calls_are_allowed_is_in_the_grammar(served_as) -> None:
    served = served_as("hermes", SAID["hermes"])
    named = {"type": "function", "function": {"name": "tide"}}
    for fields in ({}, {"tool_choice": "required"}, {"tool_choice": named}, {"parallel_tool_calls": False}):
        ask(served, tools=TOOLS, **fields)
    free, required, only, single = (order.sampling.grammar for order in served.engine.orders)
    assert len({free, required, only, single}) == 4
    assert "weather" not in only
    assert "TEXT" in free


def test_every_choice_has_calls_of_its_own(served_as) -> None:
    choices = ask(served_as("hermes", SAID["hermes"]), tools=TOOLS, n=3)["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls"] * 3
    assert len({choice["message"]["tool_calls"][0]["id"] for choice in choices}) == 3


def test_log_probabilities_and_ids_cover_the_calls_once(served_as) -> None:
    fields = {"tools": TOOLS, "logprobs": True, "return_token_ids": True}
    served = served_as("hermes", SAID["hermes"])
    (choice,) = ask(served, **fields)["choices"]
    assert bytes(choice["token_ids"]).decode() == SAID["hermes"]
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == SAID["hermes"]
    told = [choice for choice in deltas(served, **fields) if choice.get("token_ids")]
    assert bytes(id for choice in told for id in choice["token_ids"]).decode() == SAID["hermes"]


def test_a_stop_string_or_the_limit_cuts_a_call_short(served_as) -> None:
    for fields, reason in (({"stop": "om"}, "stop"), ({"max_tokens": 50}, "length")):
        (choice,) = ask(served_as("hermes", SAID["hermes"]), tools=TOOLS, **fields)["choices"]
        (call,) = choice["message"]["tool_calls"]
        assert ROME.startswith(call["function"]["arguments"])
        assert choice["finish_reason"] == reason


def test_a_resumed_stream_has_the_very_calls(served_as) -> None:
    served = served_as("hermes", SAID["hermes"])
    body = {"messages": HI, "stream": True, "tools": TOOLS}
    first = served.http.post("/v1/chat/completions", json=body, headers={"x-headrace-resumable": "true"})
    stream = first.headers["x-headrace-stream"]
    assert served.http.get(f"/v1/streams/{stream}").text == first.text
    assert '"name":"weather"' in first.text


def test_tools_and_another_form_of_the_answer_exclude_each_other(served_as) -> None:
    body = {"messages": HI, "tools": TOOLS, "response_format": {"type": "json_object"}}
    served = served_as("hermes", "{}")
    answer = served.http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    assert ask(served, tools=TOOLS, tool_choice="none", response_format={"type": "json_object"})


THOUGHT = "<think>\nThey greet.\n</think>\n\nHello!"


def test_reasoning_is_told_apart_and_counted(served_as) -> None:
    served = served_as("reasoning", THOUGHT)
    answer = ask(served)
    message = answer["choices"][0]["message"]
    assert message["content"] == "Hello!"
    assert message["reasoning_content"] == message["reasoning"] == "They greet."
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("<think>\nThey greet.\n</think>")
    told = list(deltas(served))
    assert "".join(choice["delta"].get("reasoning_content", "") for choice in told) == "They greet."
    assert "".join(choice["delta"].get("content", "") for choice in told) == "Hello!"
    ask(served, messages=[*HI, message, *HI])
    assert "<think>They greet.</think>Hello!" in prompt_of(served)


def test_reasoning_that_the_template_begins_is_told_apart_too(served_as) -> None:
    served = served_as("reasoning", THOUGHT.removeprefix("<think>\n"))
    message = ask(served, chat_template_kwargs={"enable_thinking": True})["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("They greet.", "Hello!")
    assert prompt_of(served).endswith("[assistant]<think>\n")


def test_reasoning_can_be_left_out(served_as) -> None:
    answer = ask(served_as("reasoning", THOUGHT), include_reasoning=False)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello!", "refusal": None}
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_an_effort_of_none_turns_reasoning_off_where_the_template_can(served_as) -> None:
    served = served_as("reasoning", "Hello!")
    answer = served.http.post("/v1/chat/completions", json={"messages": HI, "reasoning_effort": "none"})
    assert "x-headrace-ignored" not in answer.headers
    assert prompt_of(served).endswith("<think>\n\n</think>\n\n")


def test_what_the_template_does_not_read_is_named(served_as) -> None:
    served = served_as("text", "Hello!")
    thought = {"role": "assistant", "content": "x", "reasoning": "y"}
    fields = {"reasoning_effort": "low", "chat_template_kwargs": {"thinking": True}, "parallel_tool_calls": True}
    answer = served.http.post("/v1/chat/completions", json={"messages": [*HI, thought, *HI], **fields})
    assert answer.headers["x-headrace-ignored"].split(", ") == [
        "chat_template_kwargs.thinking",
        "messages.reasoning_content",
        "reasoning_effort",
        "parallel_tool_calls",
    ]


def test_an_answer_in_a_form_has_no_reasoning(served_as) -> None:
    served = served_as("reasoning", '{"a": 1}')
    fields = {"chat_template_kwargs": {"enable_thinking": True}, "response_format": {"type": "json_object"}}
    assert ask(served, **fields)["choices"][0]["message"]["content"] == '{"a": 1}'


def test_a_conversation_is_tokenized_as_it_is_asked(served_as) -> None:
    served = served_as("reasoning", "Hello!")
    said = {"role": "assistant", "content": "Well, "}
    for fields in (
        {"messages": HI, "tools": TOOLS},
        {"messages": HI, "chat_template_kwargs": {"enable_thinking": True}},
        {"messages": HI, "add_generation_prompt": False},
        {"messages": [*HI, said], "continue_final_message": True, "add_generation_prompt": False},
    ):
        ask(served, **fields)
        tokens = served.http.post("/tokenize", json=fields).json()["tokens"]
        assert tokens == served.engine.orders[-1].prompt
    assert prompt_of(served).endswith("[assistant]Well, ")


def test_the_openai_package_reads_calls_from_a_stream(served_as) -> None:
    served = served_as("hermes", SAID["hermes"])
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)
    with client, client.chat.completions.stream(model="bytes", messages=HI, tools=TOOLS) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Rome"}
