"""How text in a message that reads like a special token stays text, so that no user can speak as the system.

Quoting swaps the first character of each such place for a stand-in that occurs nowhere in the conversation. The
template copies it along, like any other character. Afterwards the special tokens that still read as such are the
template's own: they get secret names, the stand-ins are swapped back, and a second tokenizer, which knows the special
tokens by their secret names only, encodes the whole. Everything but the names being equal, so are the ids.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from server.errors import BadRequest
from server.text.token_finder import TokenFinder
from server.text.tokenizer import AddedToken, Encoder

_STAND_INS = range(0xF0000, 0xFFFFE)  # Unicode's plane 15 is for private use
_WINDOW = 1 << 16  # characters looked at in one call into C, which no other thread can interrupt


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (*_texts(key), *_texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_texts(key, change): _map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_texts(item, change) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Quoted:
    """What is rendered, its texts without any special token, and how to undo that in the rendering."""

    content: Any
    stand_ins: dict[str, str]  # by the character that each stands for


class Quoting:
    """Quoting for one tokenizer. Loading takes as long as loading that; everything is linear in the conversation."""

    def __init__(self, definition: str, added_tokens: Sequence[AddedToken]) -> None:
        special = [token.content for token in added_tokens if token.special]
        self._secret_names = {content: f"\ue000{secrets.token_hex(16)}\ue001" for content in special}
        self._special = TokenFinder(special)
        self._added = TokenFinder([token.content for token in added_tokens])  # a longer token may hold a special one
        self.encoder = Encoder(self._rename_special(definition))

    def quote(self, content: Any) -> Quoted | None:
        """Of messages, tools and whatever else comes from the client, as lists and dicts; None for the usual case, in
        which no text holds a special token.
        """
        if not any(self._special.is_in(text) for text in _texts(content)):
            return None
        stand_ins = self._choose_stand_ins(content)

        def swap(text: str) -> str:
            # Again until none is left: tokens may overlap, and swapping one away can uncover another.
            while self._special.is_in(text):
                text = self._special.replace(text, lambda token: stand_ins[token[0]] + token[1:])
            return text

        return Quoted(_map_texts(content, swap), stand_ins)

    def restore(self, rendered: str, quoted: Quoted) -> str:
        """What `encoder` takes: the template's own special tokens under their secret names, the users' as they were."""
        text = self._added.replace(rendered, lambda token: self._secret_names.get(token, token))
        for original, stand_in in quoted.stand_ins.items():
            text = text.replace(stand_in, original)
        return text

    def _choose_stand_ins(self, content: Any) -> dict[str, str]:
        taken: set[str] = set()
        for text in _texts(content):
            for start in range(0, len(text), _WINDOW):
                taken.update(text[start : start + _WINDOW])
        free = (chr(code) for code in _STAND_INS if chr(code) not in taken)
        firsts = sorted({content[0] for content in self._secret_names})
        stand_ins = dict(zip(firsts, free, strict=False))
        if len(stand_ins) < len(firsts):
            raise BadRequest("The messages use every private-use character there is.", param="messages")
        return stand_ins

    def _rename_special(self, definition: str) -> str:
        """The same tokenizer.json, except for what its special tokens are called."""
        contents: dict[str, Any] = msgspec.json.decode(definition)
        names, model = self._secret_names, contents["model"]
        for token in contents["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        if isinstance(model["vocab"], dict):  # BPE and the word models; Unigram has a list
            model["vocab"] = {names.get(content, content): token for content, token in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(content, content), score] for content, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if "merges" in model:  # none may build a special token out of plain text
            model["merges"] = [merge for merge in model["merges"] if _product(merge) not in names]
        return msgspec.json.encode(contents).decode()


def _product(merge: str | list[str]) -> str:
    """What a merge rule makes of its two parts; older files write those as one string."""
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)
