"""A generator on a scripted engine and a tokenizer of bytes. Test folders are no packages, hence the path."""

import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from server.engine.messages import ModelCard
from server.generator import Generator
from server.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))

from scripted_engine import EOS, LONGEST, Engine


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token for each byte, numbered as the byte, then EOS, then rows without a token."""
    library = Library(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)}, [], byte_fallback=True))
    library.decoder = decoders.ByteFallback()
    library.add_special_tokens(["<eos>"])
    card = ModelCard(
        name="bytes",
        family="none",
        vocab_size=260,
        dim=8,
        context_length=LONGEST,
        tokenizer=library.to_str(),
        chat_template=None,
        special_tokens={},
        eos_ids=[EOS],
    )
    return Tokenizer(card)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def generator(engine: Engine, tokenizer: Tokenizer) -> Generator:
    return Generator(engine, tokenizer, [EOS])
