"""How a text is cut at a marker while it grows, holding back no more than may still change."""


class MarkerFinder:
    """Cuts a text before and after the first place of a marker, however the text is cut into pieces."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is certain to lie before the marker, and, once it was found, what came after it."""
        text = self._held + text
        before, marker, after = text.partition(self._marker)
        if marker:
            self._held = ""
            return before, after
        certain = len(text) - self._begun(text)
        self._held = text[certain:]
        return text[:certain], None

    def flush(self) -> str:
        """The end of the text: what was held back did not become the marker."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """How much of the marker the text ends with."""
        lengths = range(min(len(self._marker) - 1, len(text)), 0, -1)
        return next((length for length in lengths if text.endswith(self._marker[:length])), 0)


class Edges:
    """A text without the white space at its edges; what is held back of its end is certain once more comes."""

    def __init__(self, *, is_started: bool = False) -> None:
        """A text that `is_started` keeps the white space at its beginning."""
        self._is_started = is_started
        self._held: list[str] = []

    def feed(self, text: str) -> str:
        if not self._is_started:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            self._held.append(text)
            return ""
        self._is_started = True
        before, self._held = "".join(self._held), [text[len(body) :]]
        return before + body

    def flush(self) -> str:
        """The white space at the end, for a text that is to keep it."""
        held, self._held = "".join(self._held), []
        return held
