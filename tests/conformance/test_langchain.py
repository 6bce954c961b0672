"""LangChain's package for OpenAI, unchanged, against a real server with the default model."""

from typing import Literal

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from support import RunningServer

ASKED = "What is the capital of France?"
PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def chat(base_url: str, model: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=base_url, api_key="none", model=model, temperature=0, max_retries=0)


@pytest.mark.proves("answers")
def test_a_question_is_answered_and_counted(chat: ChatOpenAI) -> None:
    answer = chat.invoke(ASKED)
    assert answer.content == PARIS
    assert answer.usage_metadata["total_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


@pytest.mark.proves("answers")
async def test_questions_in_a_batch(chat: ChatOpenAI) -> None:
    answers = await chat.abatch([ASKED, [HumanMessage(ASKED), AIMessage(PARIS), HumanMessage("Thanks. Once more?")]])
    assert answers[0].content == PARIS
    assert answers[1].content


@pytest.mark.proves("streams")
def test_a_stream_says_what_a_whole_answer_says(chat: ChatOpenAI) -> None:
    chunks = list(chat.stream(ASKED, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == PARIS
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


class City(BaseModel):
    """A city."""

    is_capital: bool
    continent: Literal["Africa", "America", "Asia", "Europe"]


@pytest.mark.proves("tools")
def test_a_bound_tool_is_called_whole_and_in_pieces(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([City], tool_choice="City", parallel_tool_calls=False)
    (call,) = bound.invoke(ASKED).tool_calls
    assert City(**call["args"])
    first, *rest = bound.stream(ASKED)
    (gathered,) = sum(rest, start=first).tool_calls
    assert (gathered["name"], gathered["args"]) == (call["name"], call["args"])


@pytest.mark.proves("structured")
def test_an_answer_is_an_object_by_way_of_a_call(chat: ChatOpenAI) -> None:
    assert isinstance(chat.with_structured_output(City, method="function_calling").invoke(ASKED), City)


@pytest.mark.proves("structured")
def test_an_answer_is_an_object_of_the_schema(chat: ChatOpenAI) -> None:
    assert isinstance(chat.with_structured_output(City, method="json_schema").invoke(ASKED), City)


@pytest.mark.proves("embeddings")
def test_texts_become_vectors_once_it_is_told_to_leave_tokens_to_the_server(base_url: str, model: str) -> None:
    """Its quirk: unless told so, it counts and sends tokens of OpenAI's own vocabulary, whatever the model."""
    embeddings = OpenAIEmbeddings(base_url=base_url, api_key="none", model=model, check_embedding_ctx_length=False)
    first, second = embeddings.embed_documents(["Paris", "Rome"])
    assert first != second
    assert embeddings.embed_query("Paris") == pytest.approx(first, abs=1e-6)


@pytest.mark.proves("errors")
def test_a_refusal_is_the_error_of_openais_package(chat: ChatOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat.invoke(ASKED, temperature=3)


@pytest.mark.proves("retries")
def test_a_full_server_is_asked_again_after_the_time_it_names(busy_server: RunningServer) -> None:
    chat = ChatOpenAI(base_url=f"{busy_server.url}/v1", api_key="none", model="narrow", max_retries=10, max_tokens=1)
    assert chat.invoke(ASKED).response_metadata["finish_reason"] == "length"
