"""`headrace verify` with the engine of `unexact_engine.py`."""

import asyncio
import sys
from pathlib import Path

from server.config import ModelOptions
from server.exactness.verify import verify

UNEXACT_ENGINE = (sys.executable, "-P", str(Path(__file__).with_name("unexact_engine.py")))

if __name__ == "__main__":
    sys.exit(asyncio.run(verify(ModelOptions(model=sys.argv[1], threads=1), UNEXACT_ENGINE)))
