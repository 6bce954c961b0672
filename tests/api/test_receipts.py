"""What every answer says of where it came from."""

import re

import pytest

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
COMPLETION = ("/v1/completions", {"prompt": "Hi"})


def receipt(answer) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', answer.headers["x-headrace-receipt"]))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION])
def test_every_answer_has_a_receipt_and_the_fingerprint_that_goes_with_it(served, path, body, stream):
    answers = [served.http.post(path, json={**body, "stream": stream}) for _ in range(2)]
    first, second = map(receipt, answers)
    assert first.keys() == {
        "version",
        "weights",
        "template",
        "tokenizer",
        "device",
        "dtype",
        "kv_dtype",
        "kernels",
        "seed",
    }
    assert first.pop("seed") != second.pop("seed")
    assert first == second
    assert len({name for answer in answers for name in re.findall(r'"system_fingerprint":"(.*?)"', answer.text)}) == 1


def test_the_seed_of_a_receipt_is_the_one_that_was_drawn_or_given(serve):
    served = serve()
    drawn = receipt(served.http.post("/v1/completions", json={"prompt": "Hi"}))["seed"]
    assert int(drawn) == served.engine.orders[0].sampling.seed
    assert receipt(served.http.post("/v1/completions", json={"prompt": "Hi", "seed": -7}))["seed"] == "-7"


def test_the_fingerprint_tells_what_computes(serve):
    served = serve()
    names = set()
    changes = {"weights": "1" * 64, "dtype": "bfloat16", "kv_dtype": "int8", "kernels": "avx2", "device": "cuda"}
    for changed in ({}, *({name: value} for name, value in changes.items())):
        served.engine.change(**changed)
        names.add(served.http.post("/v1/completions", json={"prompt": "Hi"}).json()["system_fingerprint"])
    assert len(names) == 1 + len(changes)
