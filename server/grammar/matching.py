"""How llguidance sees the model: its vocabulary, and a grammar set to work on it."""

from collections.abc import Callable, Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from server.text.tokenizer import Tokenizer

# What one grammar may cost, in llguidance's own units; what exceeds it ends in an error of the matcher.
_LIMITS = LLParserLimits(verbose_errors=False)


class _Vocabulary:
    """What llguidance's TokenizerWrapper reads."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> None:
        special = {token.id: token.content.encode() for token in tokenizer.added_tokens if token.special}
        # A model without an end still needs one here: a token that has no row, so that it is never chosen.
        self.tokens = [*tokenizer.token_bytes, b""]
        for token, content in special.items():
            if token < tokenizer.vocab_size:
                self.tokens[token] = content
        nameless = [token for token, content in enumerate(self.tokens) if not content]
        self.special_token_ids = sorted({*special, *eos_ids, *nameless} & set(range(len(self.tokens))))
        self.eos_token_ids = list(eos_ids) or [tokenizer.vocab_size]
        self.eos_token_id = self.eos_token_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self._encode: Callable[[str], list[int]] = tokenizer.encode_plain

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def vocabulary(tokenizer: Tokenizer, eos_ids: Sequence[int]) -> LLTokenizer:
    """Every token by the bytes that it adds to an answer's text; any of `eos_ids` ends what a grammar takes.

    Building it takes as long as loading a tokenizer, without the interpreter's lock.
    """
    tokens = _Vocabulary(tokenizer, eos_ids)
    return LLTokenizer(TokenizerWrapper(tokens), eos_token=tokens.eos_token_ids)


def matcher(tokens: LLTokenizer, grammar: str) -> LLMatcher:
    """The grammar before any token, without the interpreter's lock; a wrong one has `is_error` and never raises."""
    return LLMatcher(tokens, grammar, log_level=0, limits=_LIMITS)
