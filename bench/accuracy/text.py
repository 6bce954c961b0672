"""Which text the model is judged on: prose that every Python of one version has, cut into windows of tokens."""

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer

from model.checkpoints.checkpoint import open_checkpoint

WINDOW = 512  # tokens; each window is read from position 0, and all its tokens but the first are predicted


@dataclass(frozen=True, slots=True)
class Text:
    """The language reference as `help()` shows it."""

    content: str

    @classmethod
    def of_this_python(cls) -> "Text":
        return cls("\n\n".join(topics.values()))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def name(self) -> str:
        return f"the topics of `pydoc` of Python {platform.python_version()}, joined by blank lines"

    def windows(self, model: Path, tokens: int) -> list[list[int]]:
        """The first windows, by the model's own tokenizer: as few as predict so many tokens.

        Raises ValueError where the text is not that long.
        """
        card = open_checkpoint(model).tokenizer()
        tokenizer: Tokenizer = Tokenizer.from_str(card.tokenizer_json)
        ids: list[int] = tokenizer.encode(self.content, add_special_tokens=False).ids
        count = -(-tokens // (WINDOW - 1))
        if not 0 < count * WINDOW <= len(ids):
            raise ValueError(f"{tokens} tokens were asked for, the text has {len(ids) // WINDOW * (WINDOW - 1)}")
        return [ids[at : at + WINDOW] for at in range(0, count * WINDOW, WINDOW)]
