"""What must be known of a server before any load: its model's name, token ids that are valid, tokens per word."""

import itertools
import random
import string
from dataclasses import dataclass
from typing import Any, Literal

from server.bench.client import Client, ServerError
from server.bench.workload import COMMON_WORDS, Material, Prompt

Endpoint = Literal["completions", "chat"]
PromptKind = Literal["auto", "ids", "words"]
PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
FEW_WORDS, MANY_WORDS = 50, 150  # lengths of the two prompts by which words are measured


@dataclass(frozen=True, slots=True)
class Target:
    """A server as the load generator addresses it."""

    model: str
    endpoint: Endpoint
    material: Material

    def body(self, prompt: Prompt, max_tokens: int) -> dict[str, Any]:
        """The fields that every request has."""
        asked: dict[str, Any] = {"prompt": prompt}
        if self.endpoint == "chat":
            asked = {"messages": [{"role": "user", "content": prompt}]}
        return {"model": self.model, **asked, "max_tokens": max_tokens}


async def probe(client: Client, model: str | None, endpoint: Endpoint, kind: PromptKind) -> Target:
    """Asks a server all that the load needs; "auto" takes ids where it can, for their exact lengths.

    Raises ServerError where the server cannot say.
    """
    model = model or await find_model(client)
    if kind == "ids" or (kind == "auto" and endpoint == "completions"):
        try:
            target = Target(model, endpoint, Material(ids=await find_ids(client)))
            await client.fetch("POST", PATHS[endpoint], target.body(list(target.material.ids[:1]), 1))
            return target  # it gives ids out and takes them back
        except ServerError:
            if kind == "ids":
                raise
    words = Target(model, endpoint, Material())
    return Target(model, endpoint, await measure_words(client, words))


async def find_model(client: Client) -> str:
    """The first model that the server lists."""
    answer = await client.fetch("GET", "/v1/models")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ServerError(f"{client.address.url} lists no model: name one with --model") from None


async def find_ids(client: Client) -> tuple[int, ...]:
    """Many different ids of ordinary text, by having text tokenized: so no id is special, unused or too large.

    vLLM's form of the request is tried first, then llama.cpp's. Raises ServerError where neither is understood.
    """
    pairs = ("".join(pair) for pair in itertools.product(string.ascii_letters, string.ascii_lowercase))
    text = " ".join([*COMMON_WORDS, *(word.title() for word in COMMON_WORDS), *pairs])
    problem = "no ids in the answer"
    for body in ({"prompt": text, "add_special_tokens": False}, {"content": text}):
        try:
            answer = await client.fetch("POST", "/tokenize", body)
        except ServerError as error:
            problem = str(error)
            continue
        ids = answer.get("tokens") if isinstance(answer, dict) else None
        if isinstance(ids, list) and ids and all(isinstance(token, int) for token in ids):
            return tuple(sorted(set(ids)))
    raise ServerError(f"{client.address.url} gives no token ids, use --prompt-kind words ({problem})")


async def measure_words(client: Client, words: Target) -> Material:
    """How many tokens a word has, and how many any prompt has besides, by the usage of two short prompts."""
    rng = random.Random(0)
    counts = []
    for amount in (FEW_WORDS, MANY_WORDS):
        prompt = " ".join(rng.choices(COMMON_WORDS, k=amount))
        answer = await client.fetch("POST", PATHS[words.endpoint], words.body(prompt, 1))
        try:
            counts.append(int(answer["usage"]["prompt_tokens"]))
        except (KeyError, TypeError, ValueError):
            raise ServerError(f"{client.address.url} reports no usage, so no prompt's length is known") from None
    per_word = (counts[1] - counts[0]) / (MANY_WORDS - FEW_WORDS)
    if per_word <= 0:
        raise ServerError(f"{client.address.url} counts {counts} prompt tokens for {FEW_WORDS} and {MANY_WORDS} words")
    return Material((), per_word, counts[0] - FEW_WORDS * per_word)
