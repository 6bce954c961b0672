"""Which packed formats exist, and how many weights and bytes a block of each holds."""

from enum import Enum, unique


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
