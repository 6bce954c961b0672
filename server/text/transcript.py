"""Which part of an answer is final: its text, cut at stop strings, and each token together with its text."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from server.text.detokenizer import Detokenizer
from server.text.stop_strings import StopStrings
from server.text.tokenizer import TokenText


@dataclass(frozen=True, slots=True)
class _Placed:
    """A token and where its text lies in the answer: characters [start, stop), of which it may share the outer two."""

    token: TokenText
    start: int
    stop: int


class Transcript:
    """One answer on its way. `feed` it tokens, `end` it, and `take` what has become final since the last time.

    A token is final with the end of its text. Those that begin at a stop string or beyond it are dropped.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stop_strings = StopStrings(stop)
        self._decoded = 0  # characters, as are the next
        self._final = 0
        self._waiting: deque[_Placed] = deque()
        self._texts: list[str] = []
        self._tokens: list[TokenText] = []

    @property
    def stop_string(self) -> str | None:
        """The one that was found, if one was."""
        return self._stop_strings.found

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found; what is fed after that is ignored."""
        return self.stop_string is not None

    def feed(self, token: TokenText) -> None:
        if self.is_stopped:
            return
        start = self._decoded
        text = self._detokenizer.feed(token.id)
        self._decoded += len(text)
        # A code point that is not yet complete will be the character after those decoded.
        self._waiting.append(_Placed(token, start, self._decoded + self._detokenizer.is_inside_character))
        self._settle(self._stop_strings.feed(text))

    def feed_silent(self, token: TokenText) -> None:
        """A token that adds no text: it is final with all the text before it."""
        if not self.is_stopped:
            self._waiting.append(_Placed(token, self._decoded, self._decoded))

    def end(self) -> None:
        """No more tokens: nothing need be held back."""
        self._settle(self._stop_strings.feed(self._detokenizer.flush()))
        self._settle(self._stop_strings.flush())

    def take(self) -> tuple[str, list[TokenText]]:
        text, tokens = "".join(self._texts), self._tokens
        self._texts, self._tokens = [], []
        return text, tokens

    def _settle(self, text: str) -> None:
        if text:
            self._texts.append(text)
            self._final += len(text)
        while self._waiting and self._waiting[0].stop <= self._final:
            self._tokens.append(self._waiting.popleft().token)
        if self.is_stopped:  # the text ends here, perhaps within a token
            self._tokens += [placed.token for placed in self._waiting if placed.start < self._final]
            self._waiting.clear()
