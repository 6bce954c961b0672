"""How many answers has one prompt at temperature 0, asked many times while the load changes? One.

The prompt is asked in bursts of 1 to 32 at a time, each beside up to 16 other requests that begin at other moments,
some with the same first words, so that batches, chunks, cached prefixes and drafts are different each time. An answer
is its text and the log probability of each token to the last bit. Prior art has had 80 answers to 1,000 requests from
kernels that sum as the batch wants it (Thinking Machines, "Defeating Nondeterminism in LLM Inference", 2025).
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from typing import Any

import httpx
from support import patient_client, running_server
from tqdm import tqdm

from model.checkpoints.sources import DEFAULT_MODEL

PROMPT = "Tell me about Richard Feynman.\nRichard Feynman was"
MAX_TOKENS = 24


def _body(**fields: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0, "logprobs": 0, "ignore_eos": True} | fields


async def _answer(http: httpx.AsyncClient, **fields: Any) -> str:
    answer = await http.post("/v1/completions", json=_body(**fields))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0])


async def _disturb(http: httpx.AsyncClient, draw: random.Random) -> None:
    """Another request, at some moment of the burst."""
    words = PROMPT[: draw.randrange(len(PROMPT))] + " ".join(str(draw.random()) for _ in range(draw.randrange(1, 8)))
    fields = {"prompt": words, "temperature": 1.0, "seed": draw.randrange(1000), "max_tokens": draw.randrange(1, 32)}
    await asyncio.sleep(draw.random() / 2)
    await _answer(http, **fields)


async def soak(url: str, requests: int, seed: int = 0) -> Counter[str]:
    """How often each answer came."""
    draw = random.Random(seed)
    answers: Counter[str] = Counter()
    async with patient_client(url) as http:
        with tqdm(total=requests, unit="request", mininterval=1) as bar:
            while (left := requests - answers.total()) > 0:
                burst = min(draw.randrange(1, 33), left)
                neighbours = [_disturb(http, draw) for _ in range(draw.randrange(17))]
                said = await asyncio.gather(*(_answer(http) for _ in range(burst)), *neighbours)
                answers.update(said[:burst])
                bar.set_postfix(answers=len(answers), refresh=False)
                bar.update(burst)
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with running_server("--model", arguments.model) as server:
        start = time.monotonic()
        answers = asyncio.run(soak(server.url, arguments.requests, arguments.seed))
        seconds = time.monotonic() - start
    print(f"{answers.total()} requests, {len(answers)} different answers, {seconds:.0f} s")
    for answer, count in answers.most_common(10 if len(answers) > 1 else 0):
        print(f"{count}: {answer}")
    return 0 if len(answers) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
