"""An engine process with a fault of `engine_faults.py`, whose name is the first argument."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import engine_faults
import pytest

from server.engine.loop import main

if __name__ == "__main__":
    plant = getattr(engine_faults, sys.argv.pop(1))
    plant(pytest.MonkeyPatch())
    sys.exit(main())
