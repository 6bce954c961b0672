"""What a GGUF file says of its vocabulary: the `tokenizer.ggml.*` keys, checked against each other."""

import reprlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from model.checkpoints.errors import CheckpointError

PREFIX = "tokenizer.ggml."


class TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Keys:
    """The metadata below `tokenizer.ggml.`, read by name and type; each refusal is a CheckpointError."""

    path: Path
    metadata: dict[str, Any]

    def text(self, key: str) -> str:
        value = self.metadata.get(PREFIX + key)
        if not isinstance(value, str):
            raise self.refusal(key, "is missing" if value is None else "is not a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(PREFIX + key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, f"is {reprlib.repr(value)}, not a bool")
        return value

    def array(self, key: str, kind: type, length: int | None = None) -> list[Any]:
        values = self.metadata.get(PREFIX + key)
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise self.refusal(key, "is missing" if values is None else f"is not an array of {kind.__name__}")
        if length is not None and len(values) != length:
            raise self.refusal(key, f"has {len(values)} entries, {PREFIX}tokens has {length}")
        return values

    def refusal(self, key: str, reason: str) -> CheckpointError:
        return CheckpointError(self.path, f"key {PREFIX}{key} {reason}")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, their types, and ids by token."""

    keys: Keys
    tokens: list[str]
    types: list[int]
    ids: dict[str, int]

    @classmethod
    def read(cls, keys: Keys) -> "Vocabulary":
        """Raises CheckpointError where there is no vocabulary, or where a text stands for two tokens."""
        tokens = keys.array("tokens", str)
        types = keys.array("token_type", int, len(tokens))
        ids = {token: id for id, token in enumerate(tokens)}
        if len(ids) != len(tokens):
            twice = next(token for id, token in enumerate(tokens) if ids[token] != id)
            raise keys.refusal("tokens", f"has {reprlib.repr(twice)} twice")
        return cls(keys, tokens, types, ids)

    def of_type(self, *types: TokenType) -> list[tuple[int, str]]:
        """(id, token) of every token of these types, by id."""
        return [(id, self.tokens[id]) for id, type in enumerate(self.types) if type in types]

    def token_id(self, key: str) -> int | None:
        """The id under `key`, or None where the file names none."""
        id = self.keys.metadata.get(PREFIX + key)
        if id is not None and not (type(id) is int and 0 <= id < len(self.tokens)):
            raise self.keys.refusal(key, f"is {reprlib.repr(id)}, not one of {len(self.tokens)} token ids")
        return id
