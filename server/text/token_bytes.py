"""Which bytes each token stands for, read off the decoder of a tokenizer.json."""

import re
from dataclasses import dataclass, field

import msgspec

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable alphabet for bytes: Latin-1's visible characters stand for themselves, the rest follow 255."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


class Step(msgspec.Struct, frozen=True):
    """One decoder of a tokenizer.json, with the fields of every kind that is supported here."""

    type: str
    decoders: list["Step"] = []
    pattern: dict[str, str] = {}
    content: str = ""
    start: int = 0
    stop: int = 0
    replacement: str = "▁"
    prepend_scheme: str = "always"
    add_prefix_space: bool = True  # what older files have in place of prepend_scheme


@dataclass(slots=True)
class TokenDecoder:
    """A tokenizer.json's decoder as a rule for single tokens, and what it takes from the beginning of a whole text."""

    is_byte_level: bool = False
    has_byte_fallback: bool = False
    replacements: list[tuple[str, str]] = field(default_factory=list)  # of single characters
    leading_spaces: int = 0  # so many are dropped from the beginning of a text
    drops_first_spaces: bool = False  # a text's first token loses all its spaces, as Metaspace has it

    @classmethod
    def read(cls, decoder: Step | None) -> "TokenDecoder":
        """Raises ValueError where the decoder cannot be followed token by token."""
        if decoder is None:
            raise ValueError("tokenizer: it has no decoder, so its tokens cannot be turned into text")
        rules = cls()
        steps = decoder.decoders if decoder.type == "Sequence" else [decoder]
        for step, earlier in zip(steps, [None, *steps], strict=False):
            rules._add(step, after_fuse=earlier is not None and earlier.type == "Fuse")
        return rules

    def _add(self, step: Step, after_fuse: bool) -> None:
        match step:
            case Step(type="ByteLevel"):
                self.is_byte_level = True
            case Step(type="ByteFallback"):
                self.has_byte_fallback = True
            case Step(type="Fuse"):
                pass  # joining tokens is what reading them one after the other does
            case Step(type="Replace", pattern={"String": old}) if len(old) == 1:  # longer ones could span tokens
                self.replacements.append((old, step.content))
            case Step(type="Strip", content=" ", stop=0) if after_fuse:  # else it would strip every token
                self.leading_spaces = step.start
            case Step(type="Metaspace"):
                self.replacements.append((step.replacement, " "))
                self.drops_first_spaces = step.prepend_scheme != "never" and step.add_prefix_space
            case _:
                raise ValueError(f"tokenizer: a decoder of type {step.type} with these settings is not supported")

    def bytes_of(self, token: str) -> bytes:
        """The bytes of a token of the vocabulary, alone and not at the beginning of a text."""
        if self.has_byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.is_byte_level and all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        return token.encode()

    def bytes_of_added(self, token: str) -> bytes:
        """The bytes of an added token: with a byte-level vocabulary those are plain text beside the alphabet."""
        return token.encode() if self.is_byte_level else self.bytes_of(token)

    def join(self, tokens: list[bytes]) -> str:
        """The text of a whole sequence; bytes that are not UTF-8 become U+FFFD."""
        if self.drops_first_spaces and tokens:
            tokens = [tokens[0].replace(b" ", b""), *tokens[1:]]
        text = b"".join(tokens).decode(errors="replace")
        spaces = len(text) - len(text.lstrip(" "))
        return text[min(spaces, self.leading_spaces) :]
