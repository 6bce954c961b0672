"""What a prompt tells of itself over HTTP: vLLM's `prompt_logprobs`, and OpenAI's `echo` with `logprobs`."""

from server.api import prompt_logprobs


def logprob(token: int) -> float:
    """What the engine of these tests says."""
    return -0.1 - token / 1000


def complete(served, **body):
    answer = served.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_prompt_logprobs_are_told_by_id_in_vllms_shape(served):
    (choice,) = complete(served, prompt="Hi!", prompt_logprobs=2, max_tokens=1)["choices"]
    nothing, i, mark = choice["prompt_logprobs"]
    assert nothing is None
    assert i == {
        "105": {"logprob": logprob(105), "rank": 1, "decoded_token": "i"},
        "106": {"logprob": logprob(105) - 1, "rank": 2, "decoded_token": "j"},
    }
    assert list(mark) == ["33", "34"]
    assert choice["logprobs"] is None


def test_without_alternatives_the_tokens_own_figure_is_told_with_its_rank(served):
    (choice,) = complete(served, prompt="Hi", prompt_logprobs=0)["choices"]
    assert choice["prompt_logprobs"] == [None, {"105": {"logprob": logprob(105), "rank": 7, "decoded_token": "i"}}]


def test_a_chat_tells_them_once_for_all_choices(served):
    body = {"messages": [{"role": "user", "content": "Hi"}], "prompt_logprobs": 1, "n": 2}
    answer = served.http.post("/v1/chat/completions", json=body).json()
    assert len(answer["choices"]) == 2
    assert len(answer["prompt_logprobs"]) == len("[user]Hi[assistant]")
    assert answer["prompt_logprobs"][0] is None


def test_who_does_not_ask_is_told_nothing(served):
    answer = complete(served, prompt="Hi")
    assert "prompt_logprobs" not in answer["choices"][0]


def test_an_echo_with_logprobs_covers_prompt_and_answer(served):
    (choice,) = complete(served, prompt="aé!", echo=True, logprobs=2, max_tokens=2)["choices"]
    assert choice["text"] == "aé!He"
    told = choice["logprobs"]
    assert told["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "!", "H", "e"]
    assert told["text_offset"] == [0, 1, 1, 2, 3, 4]
    assert told["token_logprobs"] == [None, *(logprob(token) for token in [0xC3, 0xA9, *b"!He"])]
    assert told["top_logprobs"][0] is None
    assert told["top_logprobs"][3] == {"!": logprob(33), '"': logprob(33) - 1}


def test_special_tokens_of_the_prompt_are_told_and_take_no_text_unless_they_are_in_it(served):
    (choice,) = complete(served, prompt=[257, 72, 256, 105], echo=True, logprobs=0, max_tokens=1)["choices"]
    assert choice["text"] == "HiH"
    assert choice["logprobs"]["tokens"] == ["<bos>", "H", "<eos>", "i", "H"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 2]
    (choice,) = complete(served, prompt="H<eos>i", echo=True, logprobs=0, max_tokens=1)["choices"]
    assert choice["text"] == "H<eos>iH"
    assert choice["logprobs"]["text_offset"] == [0, 1, 6, 7]


def test_lm_evals_request_is_answered_prompt_by_prompt(served):
    """It counts from both ends, so the token that ends an answer at once has to be there as well."""
    prompts = [[72, 105], [65, 66, 67], [1]]
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = complete(served, prompt=prompts, **body)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        told = choice["logprobs"]
        assert {len(figures) for figures in told.values()} == {len(prompt) + 1}
        tokens, figures, tops = (told[name][1:] for name in ("tokens", "token_logprobs", "top_logprobs"))
        assert [top[token] for token, top in zip(tokens, tops, strict=True)] == figures


def test_the_token_that_ends_an_answer_is_told_without_text(own_server):
    own_server.engine.answer = ""
    (choice,) = complete(own_server, prompt="Hi", echo=True, logprobs=1, max_tokens=1)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hi", "stop")
    assert choice["logprobs"]["tokens"] == ["H", "i", "<eos>"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


def test_choices_of_one_prompt_share_what_it_tells(served):
    answer = complete(served, prompt=["ab", "cd"], n=2, echo=True, logprobs=0, prompt_logprobs=1, max_tokens=1)
    assert [choice["logprobs"]["tokens"][:2] for choice in answer["choices"]] == [["a", "b"]] * 2 + [["c", "d"]] * 2
    assert [[*choice["prompt_logprobs"][1]] for choice in answer["choices"]] == [["98"]] * 2 + [["100"]] * 2
    readings = [order.reading is not None for order in served.engine.orders[-4:]]
    assert readings == [True, False] * 2


def test_a_prompt_can_be_read_without_an_answer(own_server):
    answer = complete(own_server, prompt="Hi", echo=True, logprobs=1, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("Hi", "length", 0)
    assert choice["logprobs"]["tokens"] == ["H", "i"]
    own_server.wait_for('headrace_requests_finished_total{reason="stop"}', 1)
    assert own_server.gained("headrace_time_to_first_token_seconds_count") == 0


def test_more_figures_than_an_answer_holds_are_refused(served, monkeypatch):
    monkeypatch.setattr(prompt_logprobs, "MAX_FIGURES", 20)
    body = {"prompt": ["abcd", "efg"], "max_tokens": 1, "echo": True}
    assert complete(served, **body, logprobs=1)
    for fields in ({"logprobs": 2}, {"prompt_logprobs": 2}):
        answer = served.http.post("/v1/completions", json=body | fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(fields))


def test_a_client_that_leaves_cancels_the_reading(own_server):
    own_server.engine.is_held = True
    body = b'{"prompt": "Hi", "echo": true, "logprobs": 1}'
    with own_server.send("/v1/completions", body):
        own_server.engine.wait_until(lambda: own_server.engine.orders)
    own_server.engine.wait_until(lambda: own_server.engine.cancelled == [0])
    own_server.wait_for('headrace_requests_finished_total{reason="disconnect"}', 1)
