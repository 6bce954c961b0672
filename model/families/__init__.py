"""Which features a checkpoint's model has, and what its tensors are called there."""

from collections.abc import Mapping, Set
from typing import Literal

from model.families import gguf, huggingface
from model.families.description import Description, UnsupportedModel

__all__ = ["Description", "UnsupportedModel", "describe"]


def describe(
    kind: Literal["safetensors", "gguf"], metadata: Mapping[str, object], tensor_names: Set[str]
) -> Description:
    """Reads a model's features from Hugging Face's config.json or GGUF's metadata.

    Raises UnsupportedModel with one line for people.
    """
    read = gguf.describe if kind == "gguf" else huggingface.describe
    try:
        return read(metadata, tensor_names)
    except KeyError as error:
        raise UnsupportedModel(f"the model's configuration lacks {error}") from error
    except (TypeError, ZeroDivisionError) as error:
        raise UnsupportedModel(f"the model's configuration has a value of the wrong kind: {error}") from error
