"""Filling in the middle: which tokens tell a model what stands before a gap and what after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from server.errors import BadRequest
from server.text.tokenizer import AddedToken

# What names the text before, the text after, and where the model begins to write; the text between follows the last.
_NAMES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Granite 4
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("<PRE>", "<SUF>", "<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
)


@dataclass(frozen=True, slots=True)
class Infill:
    """The names of one model's tokens. The text before the gap comes first, as all of these models have learned."""

    before: str
    after: str
    middle: str

    @classmethod
    def of(cls, added_tokens: Sequence[AddedToken]) -> Self | None:
        """None for a model that has no such tokens."""
        known = {token.content for token in added_tokens}
        return next((cls(*names) for names in _NAMES if known.issuperset(names)), None)

    def prompt(self, before: str, after: str) -> str:
        return f"{self.before}{before}{self.after}{after}{self.middle}"


def infill_prompt(infill: Infill | None, before: str, after: str) -> str:
    """Raises BadRequest where the model cannot."""
    if infill is None:
        message = "Unsupported parameter: 'suffix'. The model has no tokens for filling in the middle."
        raise BadRequest(message, param="suffix", code="unsupported_parameter")
    return infill.prompt(before, after)
