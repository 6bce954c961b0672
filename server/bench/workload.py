"""What is asked: prompts and answers of given lengths, drawn from a seed so that every server gets the same."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

COMMON_TEXT = """
the of and to in is it you that he was for on are with as his they be at one have this from or had by hot word but
what some we can out other were all there when up use your how said an each she which do their time if will way
about many then them write would like so these her long make thing see him two has look more day could go come did
number sound no most people my over know water than call first who may down side been now find any new work part
take get place made live where after back little only round man year came show every good me give our under name
very through just form sentence great think say help low line differ turn cause much mean before move right boy old
too same tell does set three want air well also play small end put home read hand port large spell add even land
here must big high such follow act why ask men change went light kind off need house picture try us again animal
point mother world near build self earth father head stand own page should country found answer school grow study
still learn plant cover food sun four between state keep eye never last let thought city tree cross farm hard start
might story saw far sea draw left late run while press close night real life few north open seem together next
white children begin got walk example ease paper group always music those both mark often letter until mile river
car feet care second book carry took science eat room friend began idea fish mountain stop once base hear horse cut
sure watch color face wood main enough plain girl usual young ready above ever red list though feel talk bird soon
"""
COMMON_WORDS = tuple(COMMON_TEXT.split())

Prompt = str | list[int]  # list: token ids


@dataclass(frozen=True, slots=True)
class Lengths:
    """A number of tokens, drawn evenly from `low` to `high` inclusive."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """Reads "128" or "64:256"."""
        low, _, high = text.partition(":")
        try:
            lengths = cls(int(low), int(high or low))
        except ValueError:
            raise ValueError(f"{text!r} is neither a number of tokens nor a range such as 64:256") from None
        if not 1 <= lengths.low <= lengths.high:
            raise ValueError(f"{text!r}: a range goes up from at least 1")
        return lengths

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a workload file: a real prompt, or the length of one; what it leaves out the options give."""

    prompt: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt_tokens is not None:
            raise ValueError("prompt and prompt_tokens exclude each other")
        if self.prompt == "":
            raise ValueError("prompt is empty")
        for name, value in (("prompt_tokens", self.prompt_tokens), ("output_tokens", self.output_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, at least 1 is wanted")


def read_entries(path: Path) -> list[Entry]:
    """Reads a JSONL file; ValueError names the file and line of what is wrong, OSError what cannot be read."""
    entries = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entries.append(msgspec.json.decode(line, type=Entry))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not entries:
        raise ValueError(f"{path} has no lines")
    return entries


@dataclass(frozen=True, slots=True)
class Material:
    """What prompts are made of: token ids, or without any, common words of which one is `tokens_per_word` tokens."""

    ids: tuple[int, ...] = ()
    tokens_per_word: float = 1.0
    overhead: float = 0.0  # tokens that the server adds to any prompt of words: BOS, chat template

    @property
    def is_text(self) -> bool:
        return not self.ids

    def draw(self, tokens: float, rng: random.Random) -> Prompt:
        if self.ids:
            return rng.choices(self.ids, k=max(1, round(tokens)))
        return " ".join(rng.choices(COMMON_WORDS, k=max(1, round(tokens / self.tokens_per_word))))


@dataclass(frozen=True, slots=True)
class Question:
    """One request before it is worded for an endpoint."""

    prompt: Prompt
    output_tokens: int
    seed: int  # for servers that sample


@dataclass(frozen=True, slots=True)
class Workload:
    """The distribution of questions. Prompts begin with one of `prefix_groups` prefixes, on top of their own length."""

    prompt: Lengths
    output: Lengths
    entries: tuple[Entry, ...] = ()  # instead of the lengths, in shuffled passes over all of them
    shared_prefix: int = 0  # tokens
    prefix_groups: int = 1
    seed: int = 0

    def questions(self, count: int, material: Material, part: str) -> list[Question]:
        """`count` questions; `part` names a stretch of the benchmark, so that no two of them ask the same."""
        rng = random.Random(f"{self.seed}/{part}")
        entries = self._passes(rng)
        prefixes = [self._prefix(group, material) for group in range(self.prefix_groups)]
        return [self._question(next(entries), material, rng.choice(prefixes), rng) for _ in range(count)]

    def _passes(self, rng: random.Random) -> Iterator[Entry]:
        entries = self.entries or (Entry(),)
        while True:
            yield from rng.sample(entries, len(entries))

    def _prefix(self, group: int, material: Material) -> Prompt | None:
        if self.shared_prefix == 0:
            return None
        return material.draw(self.shared_prefix, random.Random(f"{self.seed}/prefix/{group}"))

    def _question(self, entry: Entry, material: Material, prefix: Prompt | None, rng: random.Random) -> Question:
        prompt: Prompt | None = entry.prompt
        if prompt is None:
            length = entry.prompt_tokens or self.prompt.draw(rng)
            prompt = material.draw(length - material.overhead, rng)
        output = entry.output_tokens or self.output.draw(rng)
        return Question(prompt if prefix is None else _join(prefix, prompt), output, rng.getrandbits(31))


def _join(prefix: Prompt, prompt: Prompt) -> Prompt:
    if isinstance(prefix, list) and isinstance(prompt, list):
        return prefix + prompt
    assert isinstance(prefix, str), "ids in front of text"
    assert isinstance(prompt, str), "text in front of ids"
    return f"{prefix} {prompt}"
