"""`headrace serve` with the engine of `faulty_engine.py`."""

import argparse
import sys
from pathlib import Path

from server import config
from server.serve import serve

FAULTY_ENGINE = (sys.executable, "-P", str(Path(__file__).with_name("faulty_engine.py")))

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    config.add_arguments(parser, config.ServeOptions)
    sys.exit(serve(config.read(config.ServeOptions, parser.parse_args()), FAULTY_ENGINE))
