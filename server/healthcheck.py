"""Whether the server in this container is ready: `python -m server.healthcheck`, exit code 0 or 1."""

import os
import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 2.0


def main() -> int:
    port = os.environ.get("HEADRACE_PORT", "8000")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=_TIMEOUT_S) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
