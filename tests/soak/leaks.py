"""Does anything of one client ever show in another's answer?

Clients that each have a secret of 32 hexadecimal digits in their prompts ask a model that repeats its prompt, so that
whatever keys and values it reads become text. The KV cache is too small for all of them, which forces preemption;
prompts share their first block and some of the rest, so that the prefix cache gives and evicts; one request in five is
cancelled at a random moment; freed blocks hold NaN. No answer may hold eight digits in a row of another's secret, and
every greedy one has to be the prompt again, to the last character.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from copying_model import PERIOD, write_copying_model
from support import RunningServer, patient_client, running_server
from tqdm import tqdm

SERVER = ("--kv-memory", "0.0003", "--check-invariants")  # less than a third of what the clients could fill together
DIGITS = 8
MAX_TOKENS = 160
PREEMPTIONS, PREFIX_HITS = "headrace_preemptions_total", "headrace_prefix_cache_hit_tokens_total"


@dataclass(slots=True)
class Outcome:
    whole: int = 0
    cancelled: int = 0
    drawn: int = 0  # of both; what those were to say is not known beforehand
    leaks: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Clients:
    """Who they are, and what each may and may not be told."""

    def __init__(self, count: int, seed: int) -> None:
        self._draw = random.Random(seed)
        self._secrets = [f"{self._draw.getrandbits(128):032x}" for _ in range(count)]
        self._owners = {
            secret[start : start + DIGITS]: owner
            for owner, secret in enumerate(self._secrets)
            for start in range(len(secret) - DIGITS + 1)
        }
        self.outcome = Outcome()

    def prompt(self, client: int) -> str:
        """All begin alike for a block and more; the end differs from request to request."""
        text = f"All of us say this: {self._secrets[client]}, {self._draw.randrange(4)} times"
        return text.ljust(PERIOD, ".")

    async def ask(self, http: httpx.AsyncClient, client: int) -> None:
        """One request of this client's, and a judgement on its answer."""
        prompt, is_greedy = self.prompt(client), self._draw.random() < 0.8
        patience = self._draw.randrange(MAX_TOKENS) if self._draw.random() < 0.2 else None
        limit = self._draw.randrange(1, MAX_TOKENS)
        body = {"prompt": prompt, "max_tokens": limit, "ignore_eos": True}
        body |= {"temperature": 0} if is_greedy else {"temperature": 1.5, "seed": self._draw.randrange(1000)}
        said = await (_whole(http, body) if patience is None else _cut(http, body, patience))
        self._judge(client, said)
        want = (prompt * 3)[: limit if patience is None else len(said)]
        if is_greedy and said != want:
            self.outcome.wrong.append(f"client {client} was told {said!r}, not {want!r}")
        self.outcome.drawn += not is_greedy
        self.outcome.whole += patience is None
        self.outcome.cancelled += patience is not None

    def _judge(self, client: int, said: str) -> None:
        for start in range(len(said) - DIGITS + 1):
            owner = self._owners.get(said[start : start + DIGITS], client)
            if owner != client:
                self.outcome.leaks.append(f"client {client} was told of client {owner}'s secret: {said!r}")


async def _whole(http: httpx.AsyncClient, body: dict[str, object]) -> str:
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


async def _cut(http: httpx.AsyncClient, body: dict[str, object], patience: int) -> str:
    """What had come of a stream when its reader left after so many events."""
    texts: list[str] = []
    async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                texts += [choice["text"] for choice in json.loads(line.removeprefix("data: "))["choices"]]
            if len(texts) >= patience:
                break
    return "".join(texts)


async def soak(url: str, count: int, requests: int, seed: int = 0) -> Outcome:
    """All clients at a time, each of which asks as soon as it has been answered."""
    clients = Clients(count, seed)
    left = iter(range(requests))
    async with patient_client(url) as http:
        with tqdm(total=requests, unit="request", mininterval=1) as bar:

            async def be(client: int) -> None:
                for _ in left:
                    await clients.ask(http, client)
                    bar.set_postfix(leaks=len(clients.outcome.leaks), wrong=len(clients.outcome.wrong), refresh=False)
                    bar.update()

            await asyncio.gather(*(be(client) for client in range(count)))
    return clients.outcome


def check(server: RunningServer, outcome: Outcome) -> list[str]:
    """What is wrong, in words: with the answers, with the books, or with the soak, if it did not squeeze the server."""
    books = ["the books of the KV cache were wrong"] if server.metric("headrace_kv_invariant_violations_total") else []
    unused = [series for series in (PREEMPTIONS, PREFIX_HITS) if not server.metric(series)]
    return [*outcome.leaks, *outcome.wrong, *books, *(f"{series} is 0: this proves little" for series in unused)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_copying_model(Path(folder) / "copying")
        with running_server("--model", str(model), *SERVER) as server:
            start = time.monotonic()
            outcome = asyncio.run(soak(server.url, arguments.clients, arguments.requests, arguments.seed))
            print(f"{outcome.whole} whole answers, {outcome.cancelled} cancelled, {outcome.drawn} of both drawn")
            print(f"{time.monotonic() - start:.0f} s, {server.metric(PREEMPTIONS):.0f} preemptions")
            print(f"{server.metric(PREFIX_HITS):.0f} prompt tokens from the cache")
            found = check(server, outcome)
    print(f"{len(outcome.leaks)} leaks, {len(outcome.wrong)} wrong answers", *found[:10], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
