"""Which part of a prompt is kept, what stands around a gap, and how urgent a request is: what the engine is given."""

import msgspec
import pytest
from tokenizers import Tokenizer as Library

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
TELLS_FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


def ask(served, path: str, **fields: object) -> dict:
    served.engine.forget()
    answer = served.http.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(("kept", "prompt"), [(3, "o, you"[-3:]), (6, "o, you"), (7, "o, you"), (2**62, "o, you")])
def test_the_end_of_a_prompt_is_kept(own_server, kept, prompt):
    answer = ask(own_server, "/v1/completions", prompt=["o, you", "abcd"], truncate_prompt_tokens=kept, echo=True)
    assert [bytes(order.prompt) for order in own_server.engine.orders] == [prompt.encode(), b"abcd"[-kept:]]
    assert answer["choices"][0]["text"] == prompt + "Hello, world!"
    assert answer["usage"]["prompt_tokens"] == len(prompt) + min(kept, 4)


def test_minus_one_keeps_what_leaves_room_for_the_answer(own_server):
    longest = own_server.engine.longest
    for limit in (None, 100):
        body = {"messages": [{"role": "user", "content": "x" * 2 * longest}], "truncate_prompt_tokens": -1}
        ask(own_server, "/v1/chat/completions", **body, max_tokens=limit)
        (order,) = own_server.engine.orders
        assert len(order.prompt) == longest - (limit or 1)
        assert bytes(order.prompt).endswith(b"xx[assistant]")
        assert order.max_tokens == (limit or 1)
    ask(own_server, "/v1/completions", prompt=[1, 2], truncate_prompt_tokens=-1, max_tokens=5)
    assert own_server.engine.orders[0].prompt == [1, 2]


def test_a_priority_goes_with_every_choice(own_server):
    ask(own_server, "/v1/completions", prompt=["a", "b"], n=2, priority=-7)
    assert [order.priority for order in own_server.engine.orders] == [-7] * 4
    ask(own_server, "/v1/chat/completions", **CHAT)
    assert [order.priority for order in own_server.engine.orders] == [0]


def test_a_gap_is_filled_where_the_model_has_tokens_for_that(own_server):
    engine = own_server.engine
    library = Library.from_str(engine.card.tokenizer)
    library.add_special_tokens(TELLS_FIM)
    engine.card = msgspec.structs.replace(engine.card, tokenizer=library.to_str())  # read with the first request
    answer = ask(own_server, "/v1/completions", prompt="def f(", suffix="\n    return x", max_tokens=40)
    before, after, middle = (library.token_to_id(token) for token in TELLS_FIM)
    assert engine.orders[0].prompt == [before, *b"def f(", after, *b"\n    return x", middle]
    assert answer["choices"][0]["text"] == "Hello, world!"
    ask(own_server, "/v1/completions", prompt=["a", "b"], suffix="")
    assert [order.prompt for order in engine.orders] == [[before, ord(p), after, middle] for p in "ab"]


def test_a_model_without_such_tokens_says_so(served):
    answer = served.http.post("/v1/completions", json={"prompt": "def f(", "suffix": "x"})
    assert answer.status_code == 400
    assert "no tokens for filling in the middle" in answer.json()["error"]["message"]
