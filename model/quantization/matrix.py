"""What a matrix of the checkpoint offers whose numbers are not stored one by one."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Self

from torch import Tensor

from model.quantization.rounding import Rounding


class PackedMatrix(ABC):
    """A matrix [rows, columns] whose bytes stay as the file has them, mapped into memory until kernels take them."""

    __slots__ = ()

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in weights."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The format's, as `TensorInfo.dtype` has it: of a `Format`, or of `Scaled` numbers."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Tensor, ...]:
        """The stored tensors that it is made of."""

    @property
    @abstractmethod
    def kind(self) -> Hashable:
        """What matrices of one class have in common if their rows can be stacked."""

    @property
    def rounding(self) -> Rounding | None:
        """What its input is rounded to before the product; None where it is taken as it comes."""
        return None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @abstractmethod
    def dequantize(self) -> Tensor:
        """The weights as float32 [rows, columns]: the format's exact meaning."""

    @abstractmethod
    def narrow(self, dim: int, start: int, length: int) -> Self:
        """A view of some rows (dim 0) or columns (dim 1). Raises ValueError where it would part what is packed."""

    @abstractmethod
    def above(self, others: Sequence[Self]) -> Self:
        """Its rows and then theirs; all are of one kind."""
