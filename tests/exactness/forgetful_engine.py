"""An engine process whose draws hang on which process it is: `server.engine.loop` with one function replaced."""

import os
import sys

import model.sampling
from model.philox import uniform
from server.engine.loop import main


def of_this_process(seed: int, position: int) -> float:
    return uniform(seed ^ os.getpid(), position)


if __name__ == "__main__":
    model.sampling.uniform = of_this_process
    sys.exit(main())
