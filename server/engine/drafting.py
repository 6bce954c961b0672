"""How a sequence might go on: as it did after an earlier place that read the same."""

# How many last words are looked up, longest first: what follows three is more often the same again, two stand in more
# places. Four add 1 % of speed on texts that copy, and one word says too little to pay where nothing is copied.
WORDS = (3, 2)

# A row more in a small step, relative to a step of one row: memory bounds both. 0.13 on two cores with AVX2.
ROW_COST = 0.13

# A step of fewer tokens is filled up to so many with drafts, which is about where computing begins to bound it.
DRAFTED_TOKENS = 8

_START = 0.5  # share of the guesses taken to be right before any has been checked
_MEMORY = 8  # guesses: a share follows the last so many


def price(rows: int) -> float:
    """How likely a draft must be to pay in a step of so many rows: it costs a row, and they yield a token each."""
    return ROW_COST * rows / (1 + ROW_COST * (rows - 1))


class Drafter:
    """Prompt lookup (Saxena 2023): finds the last few tokens of a sequence earlier in the sequence itself.

    It keeps score of how often that finds the next token of the output, by length of what was found, whether a draft
    was made of it or not: so it falls silent where drafts would not pay and speaks again where they would.
    """

    def __init__(self, tokens: list[int], prompt_length: int) -> None:
        self._tokens = tokens  # the sequence's own list, which grows at its end only
        self._prompt_length = prompt_length
        self._seen = 0  # tokens that are in the index
        self._after: dict[tuple[int, ...], int] = {}  # some last words -> the position that followed them last time
        self._match: tuple[int, int] | None = None  # for the tokens seen: how many words are found, what followed
        self._shares = dict.fromkeys(WORDS, _START)

    def propose(self, most: int, price: float) -> tuple[int, ...]:
        """Guesses at the next tokens, at most so many, and only as long as all of them are right with this chance."""
        while self._seen < len(self._tokens):
            self._learn()
        if self._match is None:
            return ()
        words, follows = self._match
        period = len(self._tokens) - follows  # a repetition that reaches the end is taken to go on
        drafts: list[int] = []
        chance = share = self._shares[words]
        while len(drafts) < most and chance > price:
            drafts.append(self._tokens[follows + len(drafts) % period])
            chance *= share
        return tuple(drafts)

    def _learn(self) -> None:
        """Takes in one more token: checks the guess at it, then looks for where its words stood before."""
        position = self._seen
        if self._match is not None and position >= self._prompt_length:
            words, follows = self._match
            is_right = self._tokens[follows] == self._tokens[position]
            self._shares[words] += (is_right - self._shares[words]) / _MEMORY
        self._seen = end = position + 1
        self._match = None
        for words in WORDS:
            if words > end:
                continue
            key = tuple(self._tokens[end - words : end])
            follows_before = self._after.get(key)
            self._after[key] = end
            if self._match is None and follows_before is not None:
                self._match = words, follows_before
