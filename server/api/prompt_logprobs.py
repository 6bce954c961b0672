"""What a prompt tells of its own tokens: how much may be asked, and how it is worded."""

import codecs
from collections.abc import Iterator
from itertools import chain

from model.batch import Finding, Reading
from server.api.choices import LEAST_LOGPROB
from server.errors import BadRequest
from server.text.tokenizer import Tokenizer, TokenText

MAX_FIGURES = 2**18  # log probabilities of prompts' tokens in one answer: 14 MB of JSON

Entry = dict[str, dict[str, object]]


def readings_of(prompts: list[list[int]], top: int | None, param: str) -> list[Reading] | None:
    """What to ask of the engine for `top` alternatives beside each token; None for nothing at all.

    Raises BadRequest that names `param` where the answer would be too large.
    """
    if top is None:
        return None
    figures = (top + 1) * sum(map(len, prompts))
    if figures > MAX_FIGURES:
        message = f"Invalid '{param}': {top + 1} log probabilities of each token of the prompt are {figures} figures."
        raise BadRequest(f"{message} At most {MAX_FIGURES} are told.", param=param, code="invalid_value")
    return [Reading(top_logprobs=top) for _ in prompts]


class ToldPrompt:
    """A prompt with what it has told; of its first token there is nothing to tell."""

    def __init__(self, tokens: list[int], findings: list[Finding], tokenizer: Tokenizer) -> None:
        self._tokens = tokens
        self._logprobs = list(chain.from_iterable(finding.logprobs for finding in findings))
        self._ranks = list(chain.from_iterable(finding.ranks for finding in findings))
        self._tokenizer = tokenizer

    def tokens(self, top: int) -> list[TokenText]:
        """As the tokens of an answer are told."""
        first = self._tokenizer.token_text(self._tokens[0])
        rest = zip(self._tokens[1:], self._logprobs, strict=True)
        return [first, *(self._tokenizer.describe(token, told.cut(top)) for token, told in rest)]

    def entries(self, top: int) -> list[Entry | None]:
        """In vLLM's shape: for each token, the likeliest in its place and itself, by id."""
        return [None, *self._entries(top)]

    def _entries(self, top: int) -> Iterator[Entry]:
        for token, told, rank in zip(self._tokens[1:], self._logprobs, self._ranks, strict=True):
            entry = {str(other): self._entry(other, logprob, r) for r, (other, logprob) in enumerate(told.top[:top], 1)}
            entry.setdefault(str(token), self._entry(token, told.chosen, rank))
            yield entry

    def _entry(self, token: int, logprob: float, rank: int) -> dict[str, object]:
        text = self._tokenizer.token_text(token).text
        return {"logprob": max(logprob, LEAST_LOGPROB), "rank": rank, "decoded_token": text}

    def offsets(self, echo: str) -> Iterator[int]:
        """Where each token's text begins in the echoed prompt, in characters.

        The echo lacks what the tokenizer has put around the text: special tokens, or a first space.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        place = 0
        for token in self._tokens:
            yield place
            text = decoder.decode(self._tokenizer.token_text(token).bytes)
            forms = (form for form in (text, text.removeprefix(" ")) if echo.startswith(form, place))
            unlike = "" if self._tokenizer.token_bytes[token] == b"" else text
            place = min(place + len(next(forms, unlike)), len(echo))
