"""The exception tree: every fault has a status, a type, a code and safe words."""

import pytest

from server import errors
from server.errors import Overloaded, PromptTooLong, shown


def test_every_error_names_a_type_that_goes_with_its_status():
    types = {429: "rate_limit_error", 500: "server_error", 503: "service_unavailable_error", 504: "server_error"}
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HeadraceError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        assert kind.type == types.get(kind.status, "invalid_request_error"), kind


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"prompt_tokens": 11}, "messages", "However, your messages resulted in 11 tokens."),
        ({"prompt_tokens": 11, "max_tokens": 5}, "messages", "However, your messages resulted in 11 tokens."),
        ({"prompt_tokens": 8, "max_tokens": 5}, "messages", "you requested 13 tokens (8 in the messages, 5 in the"),
        ({"prompt_tokens": 8, "max_tokens": 50}, "max_tokens", "you requested 58 tokens"),
    ],
)
def test_too_long_a_prompt_is_told_in_openais_words(fields, param, sentence):
    error = PromptTooLong(limit=10, param="messages", **fields)
    assert error.message.startswith("This model's maximum context length is 10 tokens. ")
    assert sentence in error.message
    assert (error.param, error.code) == (param, "context_length_exceeded")


@pytest.mark.parametrize(("asked", "told"), [(0.0, "1"), (0.2, "1"), (3.01, "4"), (1e9, "120")])
def test_waits_are_whole_seconds_that_clients_accept(asked, told):
    assert Overloaded("full", retry_after_s=asked).headers["retry-after"] == told


def test_shown_text_is_short_and_printable():
    assert shown("a\x1b[31m\u202e" + "b" * 100).isprintable()
    assert len(shown("b" * 100)) == 64
    assert shown("b" * 64) == "b" * 64
