"""Where an answer ends because of a stop string: holds back only what may still become one."""

from collections.abc import Sequence


def _fallbacks(pattern: str) -> list[int]:
    """For each prefix of the pattern, how long its longest proper border is (Knuth, Morris and Pratt, 1977)."""
    borders = [0] * len(pattern)
    length = 0
    for end in range(1, len(pattern)):
        while length and pattern[length] != pattern[end]:
            length = borders[length - 1]
        length += pattern[length] == pattern[end]
        borders[end] = length
    return borders


class _Pattern:
    """One stop string and how much of it the text so far ends with."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._fallbacks = _fallbacks(text)

    def feed(self, character: str) -> bool:
        """Whether the character completes the stop string; nothing may be fed after that."""
        while self.matched and self.text[self.matched] != character:
            self.matched = self._fallbacks[self.matched - 1]
        self.matched += self.text[self.matched] == character
        return self.matched == len(self.text)


class StopStrings:
    """Cuts a text before the stop string that is complete first (of two that end together, the longer one).

    What `feed` and `flush` return, joined, is the text up to there, in time linear in the text. Which stop string is
    found depends on the characters only, not on how the text is cut into pieces. None of them may be empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        assert all(stop), "an empty stop string would end every answer at once"
        self._patterns = [_Pattern(text) for text in stop]
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """The text that is now certain to lie before any stop string; nothing more once one was found."""
        if self.found is not None:
            return ""
        if not self._patterns:
            return text
        start = len(self._held)
        text = self._held + text
        for place in range(start, len(text)):
            complete = [pattern.text for pattern in self._patterns if pattern.feed(text[place])]
            if complete:
                self.found = max(complete, key=len)
                self._held = ""
                return text[: place + 1 - len(self.found)]
        certain = len(text) - max(pattern.matched for pattern in self._patterns)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """The end of the text: what was held back did not become a stop string."""
        held, self._held = self._held, ""
        return held
