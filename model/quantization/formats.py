"""Which packed formats exist, and how many weights and bytes a block of each holds."""

import re
from dataclasses import dataclass
from enum import Enum, unique

WORD_BITS = 32


@unique
class Format(Enum):
    """A GGML block format. Blocks lie along a row, so a row holds a whole number of them.

    Source: ggml's `ggml-common.h` and `ggml-quants.c`.
    """

    Q4_0 = (32, 18)
    Q4_1 = (32, 20)
    Q5_0 = (32, 22)
    Q5_1 = (32, 24)
    Q8_0 = (32, 34)
    Q2_K = (256, 84)
    Q3_K = (256, 110)
    Q4_K = (256, 144)
    Q5_K = (256, 176)
    Q6_K = (256, 210)

    def __init__(self, block_size: int, block_bytes: int) -> None:
        self.block_size = block_size  # weights
        self.block_bytes = block_bytes

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights."""
        assert columns % self.block_size == 0, "a row holds whole blocks"
        return columns // self.block_size * self.block_bytes


@dataclass(frozen=True, slots=True)
class Scaled:
    """Numbers under scales, as safetensors have them: I4/128 is 4-bit integers, a scale for 128 columns; F8 is floats.

    A group of 0 is all columns. Groups of columns that lie anywhere are said to have as many as a word holds: I4/8.
    """

    letter: str
    bits: int
    group: int

    def __str__(self) -> str:
        return f"{self.letter}{self.bits}/{self.group}"

    @classmethod
    def parse(cls, name: str) -> "Scaled | None":
        match = re.fullmatch(r"([IF])(\d+)/(\d+)", name)
        return cls(match[1], int(match[2]), int(match[3])) if match else None


def columns_together(name: str) -> int:
    """How many columns of a format by this name cannot be parted."""
    if name in Format.__members__:
        return Format[name].block_size
    scaled = Scaled.parse(name)
    return scaled.group or WORD_BITS // scaled.bits if scaled else 1
