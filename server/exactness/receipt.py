"""What decides an answer beside its request, told with every answer so that it can be had again."""

import hashlib
from dataclasses import asdict, dataclass

import msgspec

from server.engine.messages import ModelCard

RECEIPT = "x-headrace-receipt"  # the header


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where answers come from. Digests are SHA-256 in hex."""

    version: str  # of Headrace
    weights: str  # of a sample of them and of the model's features: see `model/checkpoints/digest.py`
    template: str  # what turns a conversation into text: chat template and special tokens
    tokenizer: str  # what turns text into tokens and back, and which of them end an answer
    device: str
    dtype: str
    kv_dtype: str
    kernels: str
    adapter: str | None = None  # all of its weights

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: equal where the same request with the same seed has the same answer."""
        return "fp_" + hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def receipt(self, seed: int) -> str:
        """A dictionary of RFC 9651, for a header: all of the above that there is, and the seed of the first choice."""
        named = [f'{name}="{value}"' for name, value in asdict(self).items() if value is not None]
        return ", ".join([*named, f'seed="{seed}"'])  # a string: an integer may have 15 digits there


def text_digests(card: ModelCard) -> tuple[str, str]:
    """Of the chat template and of the tokenizer."""
    return _digest([card.chat_template, card.special_tokens]), _digest([card.tokenizer, card.eos_ids])


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
