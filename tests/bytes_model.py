"""The model of the tests of HTTP: one token for each byte, numbered as the byte, then two special ones."""

import json
from pathlib import Path

from support import TINY, write_tiny_model
from tokenizers import Tokenizer, decoders, models

LONGEST = 512
EOS = 256
VOCABULARY = 264  # the last rows are without a token
SPECIAL_TOKENS = {"eos_token": "<eos>", "bos_token": "<bos>"}
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.content == 'refuse me' %}{{ raise_exception('that I will not say') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]"
)


def bytes_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens(["<eos>", "<bos>"])
    return tokenizer


def write_bytes_model(folder: Path, longest: int = LONGEST) -> Path:
    """With random weights, for servers that compute."""
    config = {"vocab_size": VOCABULARY, "eos_token_id": EOS, "max_position_embeddings": longest}
    write_tiny_model(folder, config=TINY | config)
    bytes_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL_TOKENS | {"chat_template": TEMPLATE}))
    return folder
