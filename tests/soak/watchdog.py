"""Does the watchdog ever raise a false alarm?

An engine at full load, and then idle, for an hour each by default, with the watchdog as users have it. It must not be
found hung, nor be replaced: `/health/live` says 200 every second, no restart is counted, and the engine process stays
the same.
"""

import argparse
import asyncio
import itertools
import random
import sys
import time

import httpx
from support import RunningServer, patient_client, running_server
from tqdm import tqdm

from model.checkpoints.sources import DEFAULT_MODEL

CLIENTS = 96  # more than run side by side
PROBE_EVERY_S = 1.0


class Watch:
    """Probes liveness once a second for some time, and keeps what it was told."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._engine = server.engine
        self.alarms: list[str] = []

    async def keep(self, what: str, seconds: float) -> None:
        start = time.monotonic()
        async with httpx.AsyncClient(base_url=self._server.url, timeout=60) as http:
            with tqdm(total=round(seconds), unit="s", desc=what, mininterval=1) as bar:
                while (passed := time.monotonic() - start) < seconds:
                    status = (await http.get("/health/live")).status_code
                    if status != 200:
                        self.alarms.append(f"{what}, after {passed:.0f} s: /health/live said {status}")
                    bar.set_postfix(alarms=len(self.alarms), refresh=False)
                    bar.update(round(passed) - bar.n)
                    await asyncio.sleep(PROBE_EVERY_S)

    def verdict(self) -> list[str]:
        restarts = self._server.metric("headrace_engine_restarts_total")
        replaced = [] if self._server.engine == self._engine else ["the engine is another process"]
        return [*self.alarms, *([f"{restarts:.0f} restarts"] if restarts else []), *replaced]


async def _keep_busy(http: httpx.AsyncClient, client: int) -> None:
    """Prompts short and long, one after the other, until cancelled."""
    draw = random.Random(client)
    for number in itertools.count():
        prompt = f"{client}.{number} " + "and so on " * draw.choice([1, 10, 100])
        body = {"prompt": prompt, "max_tokens": draw.randrange(1, 200), "ignore_eos": True}
        answer = await http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text


async def soak(server: RunningServer, seconds: float) -> tuple[list[str], float]:
    """What went wrong, and how many tokens the load came to."""
    watch = Watch(server)
    async with patient_client(server.url) as http:
        load = [asyncio.create_task(_keep_busy(http, client)) for client in range(CLIENTS)]
        await watch.keep("full load", seconds)
        assert not any(task.done() for task in load), "a client gave up"
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
    await watch.keep("idle", seconds)
    return watch.verdict(), server.metric("headrace_generation_tokens_total")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--minutes", type=float, default=60.0, help="of full load, and of idling")
    arguments = parser.parse_args()
    with running_server("--model", arguments.model) as server:
        found, tokens = asyncio.run(soak(server, arguments.minutes * 60))
    print(f"{arguments.minutes:g} minutes of full load ({tokens:.0f} tokens), as many idle: {len(found)} false alarms")
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
