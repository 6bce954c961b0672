"""`return_token_ids`: what a choice says, as ids."""

import json

import pytest

PATHS = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("/v1/completions", {"prompt": "Hi"}),
]


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_ids_are_told_where_they_are_asked_for(served, path, body):
    asked = {**body, "return_token_ids": True, "n": 2}
    whole = served.http.post(path, json=asked).json()["choices"]
    assert [choice["token_ids"] for choice in whole] == [list(b"Hello, world!")] * 2
    streamed = served.http.post(path, json={**asked, "stream": True}).text.split("\n\n")[:-2]
    parts = [choice for event in streamed for choice in json.loads(event.removeprefix("data: "))["choices"]]
    for index in (0, 1):
        mine = [id for part in parts if part["index"] == index for id in part.get("token_ids", [])]
        assert mine == list(b"Hello, world!")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), PATHS)
def test_ids_are_not_told_unasked(served, path, body, stream):
    assert "token_ids" not in served.http.post(path, json={**body, "stream": stream}).text
