"""What --ray asks for, and which options cannot be had with it."""

import os
from dataclasses import dataclass

from server.config import OptionError, ServeOptions

# What each replica would have to be told of, and is not.
_ONE_ENGINES = {
    "adapter": "replicas load none",
    "adapter_folders": "replicas load none",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """How many replicas: of different numbers, as many as the queue needs."""

    least: int
    most: int

    @property
    def is_fixed(self) -> bool:
        return self.least == self.most


def wish_of(options: ServeOptions) -> Wish:
    """Raises OptionError."""
    for name, why in _ONE_ENGINES.items():
        if getattr(options, name) is not None:
            raise OptionError(f"--{name.replace('_', '-')}: cannot be had with --ray: {why}")
    if options.tensor_parallel > 1 and "WORLD_SIZE" in os.environ:
        raise OptionError("--ray: a replica starts its ranks itself: not under torchrun")
    least, to, most = (options.ray or "").partition("-")
    wish = Wish(_count(least), _count(most if to else least))
    if wish.least > wish.most:
        raise OptionError(f"--ray: {wish.least} is more than {wish.most}")
    return wish


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1000):
        raise OptionError(f"--ray: takes a number of replicas such as 2, or a range such as 1-4, not '{text}'")
    return int(text)
