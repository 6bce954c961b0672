"""Writes the options table into the README: `python -P tests/write_options.py`."""

import re
from pathlib import Path

from server.config import ServeOptions, options_table

README = Path(__file__).parents[1] / "README.md"


def main() -> None:
    table = options_table(ServeOptions)
    text = README.read_text()
    README.write_text(re.sub(r"(<!-- options: .*? -->\n).*?(<!-- end)", rf"\1{table}\n\2", text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
