"""Text to token ids, and token ids to the bytes they stand for."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import tokenizers

from model.batch import Logprobs
from server.engine.messages import ModelCard
from server.text.token_bytes import Step, TokenDecoder

INLINE_CHARACTERS = 2048  # a text up to this long takes less time to encode than a thread takes to answer


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as people read it. `text` replaces bytes that are not UTF-8 on their own by U+FFFD."""

    id: int
    text: str
    bytes: bytes
    logprob: float | None
    top: list["TokenText"] = field(default_factory=list)  # alternatives, likeliest first, their own `top` empty


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is found in a text before anything else; a special one steers the model and is no part of text."""

    id: int
    content: str
    special: bool = False


class _Definition(msgspec.Struct, frozen=True):
    """The parts of a tokenizer.json that are read here; the library reads the rest."""

    decoder: Step | None = None
    added_tokens: list[AddedToken] = []


class Encoder:
    """Text to ids by one tokenizer.json, away from the event loop where it takes long. Safe to share among threads."""

    def __init__(self, definition: str) -> None:
        """Raises ValueError if the library cannot read the definition."""
        try:
            self.library = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"tokenizer: {error}") from error
        # A file may ask for both, and either would change prompts behind the user's back. Never touched again:
        # setting them while another thread encodes panics (tokenizers issue 537).
        self.library.no_truncation()
        self.library.no_padding()

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """`text` must be valid Unicode: the library refuses lone surrogates with a TypeError."""
        if len(text) <= INLINE_CHARACTERS:
            return self.encode_here(text, add_special_tokens)
        return await asyncio.to_thread(self.encode_here, text, add_special_tokens)

    def encode_here(self, text: str, add_special_tokens: bool) -> list[int]:
        # Unlike `encode`, the batch methods release the GIL.
        (encoding,) = self.library.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids


class Tokenizer:
    """The model's tokenizer. Loading takes up to seconds for large vocabularies: do it off the event loop."""

    def __init__(self, card: ModelCard) -> None:
        """Raises ValueError in one line if the card's tokenizer cannot be used."""
        try:
            definition = msgspec.json.decode(card.tokenizer, type=_Definition)
        except msgspec.MsgspecError as error:
            raise ValueError(f"tokenizer: {error}") from error
        self.definition = card.tokenizer
        self.vocab_size = card.vocab_size  # the model's rows, which may be more or fewer than the tokenizer's
        self.added_tokens = definition.added_tokens
        self._encoder = Encoder(card.tokenizer)
        self._decoder = TokenDecoder.read(definition.decoder)
        self._special = frozenset(token.id for token in definition.added_tokens if token.special)
        self._known = self._read_vocabulary()
        self.token_bytes = [
            b"" if token in self._special else self._known.get(token, b"") for token in range(card.vocab_size)
        ]
        bos = card.special_tokens.get("bos_token")
        self.bos_id = None if bos is None else self._encoder.library.token_to_id(bos)
        self.adds_bos = self.bos_id is not None and self._encoder.library.encode("").ids[:1] == [self.bos_id]
        self.rowless_ids = frozenset(token for token in self._known if token >= card.vocab_size)  # unknown to the model

    def _read_vocabulary(self) -> dict[int, bytes]:
        """Each token's bytes, special ones included; the model may have rows beyond, which stand for nothing."""
        vocabulary = self._encoder.library.get_vocab(with_added_tokens=False)
        known = {token: self._decoder.bytes_of(content) for content, token in vocabulary.items()}
        return known | {token.id: self._decoder.bytes_of_added(token.content) for token in self.added_tokens}

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """With `add_special_tokens`, also what the tokenizer puts around a text on its own, such as BOS.

        The text of a special token is read as that token either way. Lone surrogates raise TypeError.
        """
        return await self._encoder.encode(text, add_special_tokens=add_special_tokens)

    def encode_plain(self, text: str) -> list[int]:
        """As `encode` with nothing around the text, here and now: for short texts, or in a thread."""
        return self._encoder.encode_here(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int], *, show_special: bool = False) -> str:
        """The text of a whole sequence, as the tokenizer's own decoder has it; unknown ids are skipped."""
        hidden = frozenset() if show_special else self._special
        return self._decoder.join([self._known[token] for token in ids if token in self._known and token not in hidden])

    def token_text(self, token: int, logprob: float | None = None) -> TokenText:
        """A single token as people read it; a special one by its name, though it adds nothing to an answer's text."""
        content = self._known.get(token, b"")
        return TokenText(token, content.decode(errors="replace"), content, logprob)

    def describe(self, token: int, logprobs: Logprobs | None) -> TokenText:
        """The same with what the engine has told of it."""
        if logprobs is None:
            return self.token_text(token)
        top = [self.token_text(other, logprob) for other, logprob in logprobs.top]
        return replace(self.token_text(token, logprobs.chosen), top=top)
