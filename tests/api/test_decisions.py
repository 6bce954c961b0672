"""POST /v1/decisions over HTTP and with the openai package, on an engine whose log probabilities are known."""

import math

import msgspec
import openai
import pytest

from server.api.labels import probabilities

INPUT = "The tap drips."
CHOICE = {
    "type": "choice",
    "name": "trade",
    "instructions": "Who should come?",
    "choices": [{"value": "plumber", "description": "pipes and taps"}, {"value": "baker"}, {"value": True}],
}
SCORE = {
    "type": "score",
    "instructions": [{"type": "input_text", "text": "How urgent is it?"}],
    "levels": [{"label": "low"}, {"label": "middling", "description": "this week"}, {"label": "high"}],
}
PREDICATE = {"type": "predicate", "instructions": "Something is broken."}


def shares(*labels: str) -> list[float]:
    """What follows from what the engine of these tests says of each token."""
    return probabilities(
        [[*label.encode()] for label in labels],
        [math.fsum(-0.1 - byte / 1000 for byte in label.encode()) for label in labels],
    )


def decide(served, **body):
    answer = served.http.post("/v1/decisions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_each_kind_of_question_is_answered_in_its_shape(served):
    answer = decide(served, input=INPUT, questions=[PREDICATE, CHOICE, SCORE])
    predicate, choice, score = answer["answers"]
    assert predicate == {"type": "predicate", "name": None, "probability": shares("Yes", "No")[0]}
    odds = shares("plumber", "baker", "true")
    best = odds.index(max(odds))
    values = ["plumber", "baker", True]
    assert choice == {
        "type": "choice",
        "name": "trade",
        "choice": values[best],
        "confidence": odds[best],
        "probabilities": [{"value": v, "probability": p} for v, p in zip(values, odds, strict=True)],
    }
    odds = shares("low", "middling", "high")
    assert score["score"] == odds[1] + 2 * odds[2]
    assert score["confidence"] == max(odds)
    assert [(each["label"], each["value"]) for each in score["probabilities"]] == [
        ("low", 0),
        ("middling", 1),
        ("high", 2),
    ]
    assert answer["model"] == "bytes"
    tokens = sum(len(order.prompt) for order in served.engine.orders[-8:])
    assert answer["usage"]["input_tokens"] == answer["usage"]["total_tokens"] == tokens
    assert answer["usage"]["output_tokens"] == 0


def test_the_labels_of_a_question_follow_one_prompt_that_says_all_there_is_to_know(served):
    decide(served, input=INPUT, questions=[CHOICE])
    orders = served.engine.orders[-3:]
    texts = [bytes(order.prompt).decode() for order in orders]
    shared = texts[0].removesuffix("plumber")
    assert texts == [shared + "plumber", shared + "baker", shared + "true"]
    for words in (INPUT, "Who should come?", "- plumber: pipes and taps\n- baker\n- true\n"):
        assert words in shared
    assert {order.reading.start for order in orders} == {len(shared) - 1}
    assert {(order.reading.top_logprobs, order.max_tokens) for order in orders} == {(0, 0)}


def test_a_boolean_and_a_string_that_reads_alike_are_said_apart(served):
    question = CHOICE | {"choices": [{"value": True}, {"value": "true"}]}
    (answer,) = decide(served, input=INPUT, questions=[question])["answers"]
    assert [each["value"] for each in answer["probabilities"]] == [True, "true"]
    assert bytes(served.engine.orders[-1].prompt).endswith(b'"true"')


def test_messages_and_json_are_read_in_order(served):
    messages = [
        {"role": "developer", "content": "Be strict."},
        {"role": "user", "type": "message", "content": [{"type": "input_text", "text": "Look:"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "At what?"}], "phase": "commentary"},
        {"role": "user", "content": [{"type": "input_json", "data": {"drips": [1, 2]}}]},
    ]
    answer = served.http.post("/v1/decisions", json={"input": messages, "questions": [PREDICATE]})
    assert answer.headers["x-headrace-ignored"] == "input.phase"
    read = bytes(served.engine.orders[-1].prompt).decode()
    shown = 'developer: Be strict.\n\nuser: Look:\n\nassistant: At what?\n\nuser: {"drips":[1,2]}\n\n'
    assert shown in read


def test_what_begins_with_a_longer_label_counts_for_the_longer_one():
    art, artist, other = probabilities([[1], [1, 2], [3]], [math.log(0.6), math.log(0.5), math.log(0.2)])
    assert (art, artist, other) == pytest.approx((0.1 / 0.8, 0.5 / 0.8, 0.2 / 0.8))
    nested = probabilities([[1, 2, 3], [1], [1, 2]], [math.log(0.1), math.log(0.6), math.log(0.3)])
    assert nested == pytest.approx([0.1 / 0.6, 0.3 / 0.6, 0.2 / 0.6])


def test_the_unlikeliest_labels_still_add_up_to_one():
    odds = probabilities([[1], [2], [3]], [-2000.0, -2001.0, -9000.0])
    assert sum(odds) == pytest.approx(1.0, abs=1e-12)
    assert odds[0] / odds[1] == pytest.approx(math.e)


def test_the_openai_package_decides_with_its_own_method(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        decision = client.decisions.create(
            model="bytes", input=INPUT, questions=[PREDICATE, CHOICE, SCORE], prompt_cache_key="mine"
        )
    predicate, choice, score = decision.answers
    assert predicate.probability == shares("Yes", "No")[0]
    assert (choice.name, choice.choice) == ("trade", True)
    assert sum(each.probability for each in choice.probabilities) == pytest.approx(1.0)
    assert 0 < score.score < 2
    assert decision.usage.input_tokens_details.cached_tokens == 8


def test_a_template_that_can_leave_out_reasoning_is_told_to(own_server):
    engine = own_server.engine
    opening = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    engine.card = msgspec.structs.replace(engine.card, chat_template="{{ messages[0].content }}" + opening)
    decide(own_server, input=INPUT, questions=[PREDICATE])
    assert bytes(engine.orders[0].prompt).endswith(b"Answer with Yes or No only.Yes")


def test_more_answers_than_a_request_may_have_are_refused(served):
    many = CHOICE | {"choices": [{"value": str(place)} for place in range(255)]}
    answer = served.http.post("/v1/decisions", json={"input": INPUT, "questions": [many] * 17})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "questions"


def test_a_client_that_leaves_cancels_every_label(own_server):
    own_server.engine.is_held = True
    body = b'{"input": "Hi", "questions": [{"type": "predicate", "instructions": "Is it?"}]}'
    with own_server.send("/v1/decisions", body):
        own_server.engine.wait_until(lambda: len(own_server.engine.orders) == 2)
    own_server.engine.wait_until(lambda: own_server.engine.cancelled == [0, 1])
    own_server.wait_for('headrace_requests_finished_total{reason="disconnect"}', 1)
