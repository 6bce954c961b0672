"""Which text a growing sequence of tokens has for certain: a code point shows when its last byte has come."""

import codecs
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")
_NOTHING: Mapping[int, bytes] = MappingProxyType({})


class Detokenizer:
    """Turns tokens into text as they come; what `feed` and `flush` return, joined, is the whole text.

    Bytes that are not UTF-8 become U+FFFD, one for each longest run that could have begun a code point (Unicode
    standard, section 3.9), wherever the tokens' boundaries lie. A space at the beginning stays: it continues a prompt.
    """

    def __init__(self, token_bytes: Sequence[bytes], shown: Mapping[int, bytes] = _NOTHING) -> None:
        """`shown` are tokens that count as text here although `token_bytes` has none for them."""
        self._token_bytes = token_bytes
        self._shown = shown
        self._decoder = _Utf8Decoder(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._shown.get(token) or self._token_bytes[token])

    def flush(self) -> str:
        """The end of the text: what is still incomplete becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)

    @property
    def is_inside_character(self) -> bool:
        """Whether the tokens so far end within a code point."""
        return self._decoder.getstate()[0] != b""
