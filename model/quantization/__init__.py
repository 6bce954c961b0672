"""Packed weights: what the formats are and what they mean."""

from model.quantization.formats import Format
from model.quantization.matrix import PackedMatrix
from model.quantization.packed import PackedTensor

__all__ = ["Format", "PackedMatrix", "PackedTensor"]
