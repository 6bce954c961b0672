"""Where the names of tokens stand in a text, in linear time and without keeping other threads waiting."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_WINDOW = 1 << 16  # characters searched in one call into the regex engine, which holds the interpreter's lock


def _trie_pattern(names: Sequence[str]) -> str:
    """Matches the longest name at a place by following a trie: plain alternatives would be tried one after another."""
    trie: dict[str, Any] = {}
    for name in names:
        node = trie
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}  # a name ends here
    return _branches(trie) or "(?!)"  # nothing matches where there are no names


def _branches(node: dict[str, Any]) -> str:
    branches = [re.escape(character) + _branches(child) for character, child in node.items() if character]
    if len(branches) == 1 and "" not in node:
        return branches[0]
    return f"(?:{'|'.join(branches)}){'?' if '' in node else ''}" if branches else ""


class TokenFinder:
    """Finds names as the tokenizers library does: leftmost first, of those the longest, then on from its end."""

    def __init__(self, names: Sequence[str]) -> None:
        self._pattern = re.compile(_trie_pattern([name for name in names if name]))
        self._longest = max(map(len, names), default=0)

    def is_in(self, text: str) -> bool:
        return next(self._matches(text), None) is not None

    def replace(self, text: str, change: Callable[[str], str]) -> str:
        parts: list[str] = []
        done = 0
        for match in self._matches(text):
            parts += text[done : match.start()], change(match[0])
            done = match.end()
        return "".join([*parts, text[done:]])

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        place = 0
        while place < len(text):
            # A match that starts within the window is seen whole, since the search may look past the window's end.
            window = place + _WINDOW
            match = self._pattern.search(text, place, window + self._longest)
            if match is None or match.start() >= window:
                place = window
            else:
                yield match
                place = match.end()
