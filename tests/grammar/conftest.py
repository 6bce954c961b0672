"""A tokenizer of bytes, and its card."""

import pytest
from support import byte_tokenizer

from server.engine.messages import ModelCard
from server.text.tokenizer import Tokenizer

ROWS_BEYOND = 5


@pytest.fixture(scope="session")
def card() -> ModelCard:
    """One token a byte, then the special ones, then rows without a token; two of the special ones end an answer."""
    library = byte_tokenizer()
    return ModelCard(
        name="bytes",
        family="none",
        vocab_size=library.get_vocab_size() + ROWS_BEYOND,
        context_length=512,
        dim=64,
        tokenizer=library.to_str(),
        chat_template=None,
        special_tokens={},
        eos_ids=[library.token_to_id("<|end|>"), library.token_to_id("<|bos|>")],
    )


@pytest.fixture(scope="session")
def tokenizer(card: ModelCard) -> Tokenizer:
    return Tokenizer(card)
