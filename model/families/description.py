"""What a family's function returns."""

import re
from dataclasses import dataclass

from model.config import ModelConfig
from model.weights import Names


class UnsupportedModel(ValueError):
    """The checkpoint asks for something that this Transformer does not have."""


@dataclass(frozen=True, slots=True)
class Description:
    """A model's features, where its tensors are found, and which tensors of the checkpoint it may leave unused."""

    config: ModelConfig
    names: Names
    ignorable: re.Pattern[str] | None = None
