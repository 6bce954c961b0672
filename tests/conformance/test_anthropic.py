"""anthropic for Python, unchanged, against a real server with the default model."""

from collections.abc import Iterator
from typing import Literal

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel
from support import RunningServer

ASKED = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
GREEDY = {"temperature": 0}  # the package has no name for it any more, and sends what it is given
ANY_NAME = "claude-next"  # tools that know Anthropic's models alone send such a name


def asked_tokens(answer: anthropic.types.Message) -> int:
    """What was read of a cache is counted apart."""
    return answer.usage.input_tokens + answer.usage.cache_read_input_tokens


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.proves("answers")
@pytest.mark.parametrize("name", [None, ANY_NAME])
def test_a_question_is_answered_and_counted(client: Anthropic, model: str, name: str | None) -> None:
    answer = client.messages.create(model=name or model, messages=ASKED, max_tokens=20, extra_body=GREEDY)
    assert [block.text for block in answer.content] == [PARIS]
    assert (answer.role, answer.stop_reason) == ("assistant", "end_turn")
    assert answer.usage.input_tokens > 0


@pytest.mark.proves("answers")
async def test_the_async_client_is_told_the_same(server: RunningServer, model: str) -> None:
    async with AsyncAnthropic(base_url=server.url, api_key="none") as client:
        answer = await client.messages.create(model=model, messages=ASKED, max_tokens=20, extra_body=GREEDY)
    assert answer.content[0].text == PARIS


@pytest.mark.proves("answers")
def test_tokens_are_counted_before_they_are_paid_for(client: Anthropic, model: str) -> None:
    counted = client.messages.count_tokens(model=model, messages=ASKED, system="Be brief.")
    answer = client.messages.create(model=model, messages=ASKED, system="Be brief.", max_tokens=1)
    assert counted.input_tokens == asked_tokens(answer)
    assert answer.stop_reason == "max_tokens"


@pytest.mark.proves("streams")
def test_a_stream_says_what_a_whole_answer_says(client: Anthropic, model: str) -> None:
    with client.messages.stream(model=model, messages=ASKED, max_tokens=20, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == PARIS
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 0


class City(BaseModel):
    is_capital: bool
    continent: Literal["Africa", "America", "Asia", "Europe"]


@pytest.mark.proves("tools")
def test_a_tool_is_used_and_its_result_goes_back(client: Anthropic, model: str) -> None:
    tool = {"name": "look_up", "description": "Looks a city up.", "input_schema": City.model_json_schema()}
    asked = {"model": model, "tools": [tool], "max_tokens": 80, "extra_body": GREEDY}
    choice = {"type": "tool", "name": "look_up", "disable_parallel_tool_use": True}
    answer = client.messages.create(messages=ASKED, tool_choice=choice, **asked)
    (use,) = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert City(**use.input)
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Paris"}]}
    more = [*ASKED, {"role": "assistant", "content": answer.content}, result]
    assert asked_tokens(client.messages.create(messages=more, **asked)) > asked_tokens(answer)


@pytest.mark.proves("structured")
def test_an_answer_is_parsed_into_a_model_of_pydantic(client: Anthropic, model: str) -> None:
    answer = client.messages.parse(model=model, messages=ASKED, max_tokens=40, output_format=City, extra_body=GREEDY)
    assert isinstance(answer.parsed_output, City)


@pytest.mark.proves("errors")
def test_a_refusal_is_the_packages_own_error(client: Anthropic, model: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature") as refused:
        client.messages.create(model=model, messages=ASKED, max_tokens=5, extra_body={"temperature": 3})
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    assert refused.value.request_id
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="gpt-9", messages=ASKED, max_tokens=5)


@pytest.mark.proves("retries")
def test_a_full_server_is_asked_again_after_the_time_it_names(busy_server: RunningServer) -> None:
    with Anthropic(base_url=busy_server.url, api_key="none", max_retries=10) as client:
        answer = client.messages.with_raw_response.create(model="narrow", messages=ASKED, max_tokens=1)
    assert answer.retries_taken >= 1
    assert answer.parse().stop_reason == "max_tokens"
