"""The default model calls tools for the openai package, with arguments that follow their schemas."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from jsonschema import validate
from support import RunningServer, command, running_server, wait_until

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days", "unit"],
}
PLACES = {
    "type": "object",
    "properties": {"places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "minItems": 1, "maxItems": 2}},
    "required": ["places"],
    "$defs": {
        "place": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}
    },
}
SCHEMAS = {"get_weather": WEATHER, "find_places": PLACES, "now": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMAS[name]}} for name in SCHEMAS]
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
NAMED = [{"type": "function", "function": {"name": name}} for name in SCHEMAS]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("record") / "file.jsonl"


@pytest.fixture(scope="module")
def server(default_model: Path, record: Path) -> Iterator[RunningServer]:
    with running_server("--model", str(default_model), "--record", str(record)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


@pytest.mark.parametrize("choice", ["required", *NAMED], ids=["required", *SCHEMAS])
def test_a_call_that_is_asked_for_is_made_and_follows_its_schema(client, model, choice) -> None:
    for seed in (1, 2):
        answer = client.chat.completions.create(
            model=model, messages=QUESTION, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=seed,
        )  # fmt: skip
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls
        validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def test_a_stream_has_the_call_that_the_whole_answer_has_and_its_result_can_be_sent_back(client, model) -> None:
    fields = {"model": model, "messages": QUESTION, "tools": TOOLS, "temperature": 0}
    forced = {"tool_choice": "required", "parallel_tool_calls": False}
    message = client.chat.completions.create(**fields, **forced).choices[0].message
    with client.chat.completions.stream(**fields, **forced) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    (call,) = message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees, sunny"}
    after = client.chat.completions.create(
        **fields | {"messages": [*QUESTION, message, result]}, tool_choice="none", max_tokens=40
    )
    assert after.choices[0].message.content
    assert after.choices[0].message.tool_calls is None


def test_a_recorded_call_is_replayed(client, model, server, record, tmp_path) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, tools=TOOLS, tool_choice=NAMED[0], max_tokens=200, seed=3, user="replayed"
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    wait_until(lambda: '"user":"replayed"' in record.read_text())
    file = tmp_path / "one.jsonl"
    file.write_text(record.read_text().splitlines()[-1] + "\n")
    replay = command("replay", str(file), "--url", server.url, "--check")
    run = subprocess.run(replay, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
