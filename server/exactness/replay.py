"""`headrace replay`: asks recorded requests again, and tells where an answer is not the recorded one."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from tqdm import tqdm

from server.bench.client import Client, ServerError
from server.bench.connection import Address
from server.config import EngineOptions, OptionError
from server.exactness.difference import Difference, Told, first_difference
from server.exactness.own_server import NoServer, own_server
from server.exactness.recorder import Exchange, RecordedChoice, read_exchanges

DESCRIPTION = "Ask recorded requests again and compare the answers token by token."
EPILOG = """\
The file is what `headrace serve --record FILE` has written. It is replayed against the server at --url, or against
one that is started for it with the model and the options given here: so an upgrade is checked before it is rolled out.
  headrace replay FILE.jsonl --check --url http://127.0.0.1:8000
  headrace replay FILE.jsonl hf:org/name --check

Token ids have to be equal, and log probabilities where the recorded answer had them. At the first token that differs,
the server is asked for the odds of both: the gap between their logits tells how near the choice was. Exchanges that
failed or were cancelled are not replayed.

Exit status: 0; with --check 1 if an answer differs or there was nothing to compare; 1 if the server cannot be run,
the file cannot be read or the server gives no answer; 2 for a wrong option.
"""

_AT_ONCE = 16
_TIMEOUT_S = 600.0
_FORCED = 100.0  # the largest bias there is


class ReplayOptions(EngineOptions, frozen=True, kw_only=True):
    """Where to replay, and what follows from a difference."""

    url: Annotated[str | None, Meta(description="server to ask; unset: one is started for the model")] = None
    api_key: Annotated[str | None, Meta(description="the key that the server at --url wants")] = None
    check: Annotated[bool, Meta(description="exit with 1 if an answer differs")] = False


@dataclass(slots=True)
class Outcome:
    """What came of a file."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    fingerprints: set[tuple[str, str]] = field(default_factory=set)  # recorded, replayed


async def replay(file: str, options: ReplayOptions) -> int:
    """Prints what differs and a summary; the exit code."""
    try:
        exchanges = list(read_exchanges(Path(file)))
        async with _server(options) as address:
            outcome = await Replay(address).run(exchanges)
    except OSError as error:
        print(f"headrace: {file}: {error.strerror}", file=sys.stderr)
        return 1
    except NoServer:
        return 1
    print(_report(outcome))
    counts = outcome.counts
    is_same = counts["equal"] > 0 and not counts["different"]
    return 0 if not counts["not answered"] and (is_same or not options.check) else 1


@asynccontextmanager
async def _server(options: ReplayOptions) -> AsyncIterator[Address]:
    if options.url is None:
        async with own_server(options) as address:
            yield address
        return
    try:
        address = Address.parse(options.url, options.api_key)
    except ValueError as error:
        raise OptionError(f"--url: {error}") from None
    yield address


class Replay:
    """Asks one server."""

    def __init__(self, address: Address) -> None:
        self._client = Client(address, _TIMEOUT_S)
        self._outcome = Outcome()

    async def run(self, exchanges: list[Exchange | None]) -> Outcome:
        whole = [(line, exchange) for line, exchange in enumerate(exchanges, 1) if exchange and exchange.is_whole]
        self._outcome.counts["no exchange"] = exchanges.count(None)
        self._outcome.counts["failed or cancelled then"] = len(exchanges) - exchanges.count(None) - len(whole)
        room = asyncio.Semaphore(_AT_ONCE)
        with tqdm(total=len(whole), desc="replay", unit="request", disable=None, leave=False, file=sys.stderr) as bar:

            async def ask(line: int, exchange: Exchange) -> None:
                async with room:
                    await self._ask(f"line {line}, {exchange.id}", exchange)
                bar.update()

            await asyncio.gather(*(ask(*numbered) for numbered in whole))
        self._client.close()
        return self._outcome

    async def _ask(self, name: str, exchange: Exchange) -> None:
        try:
            answer = await self._client.fetch("POST", exchange.path, _again(exchange.request))
        except ServerError as error:
            self._find("not answered", f"{name}: {error}")
            return
        if "token_ids" not in answer["choices"][0]:
            self._find("not answered", f"{name}: the server tells no token_ids")
            return
        self._outcome.fingerprints.add((exchange.fingerprint, answer["system_fingerprint"]))
        difference = await self._compare(exchange, answer)
        if difference is None:
            self._outcome.counts["equal"] += 1
        else:
            self._find("different", f"{name}, {difference}")

    def _find(self, kind: str, text: str) -> None:
        self._outcome.counts[kind] += 1
        self._outcome.findings.append(text)

    async def _compare(self, exchange: Exchange, answer: dict[str, Any]) -> str | None:
        """The first difference, in words."""
        was, now = sum(map(len, exchange.prompts)), answer["usage"]["prompt_tokens"]
        if was != now:
            return f"the prompt has {now} tokens instead of {was}"
        for recorded, choice in zip(exchange.choices, answer["choices"], strict=True):
            difference = first_difference(_recorded(recorded), _told(choice))
            if difference is not None:
                prompt = exchange.prompts[recorded.index * len(exchange.prompts) // len(exchange.choices)]
                before = [*prompt, *recorded.token_ids[: difference.position]]
                return f"choice {recorded.index}, {await self._measured(difference, before)}"
            reason = _REASONS.get(choice["finish_reason"], choice["finish_reason"])
            if recorded.finish_reason != reason:
                return f"choice {recorded.index} ends by {reason} instead of {recorded.finish_reason}"
        was, now = exchange.completion_tokens, answer["usage"]["completion_tokens"]
        return None if was == now else f"{now} tokens were computed instead of {was}"

    async def _measured(self, difference: Difference, before: list[int]) -> Difference:
        """With the odds of both tokens, as this server sees them after the same text."""
        expected, got = difference.expected, difference.got
        if expected is None or got is None or expected.id == got.id:
            return difference
        odds = [await self._odds(before, told.id) for told in (expected, got)]
        top = {told.id: logprob for told, logprob in zip((expected, got), odds, strict=True) if logprob is not None}
        return replace(difference, got=replace(got, top=top))

    async def _odds(self, before: list[int], token: int) -> float | None:
        """The log probability of a token: it is forced, since what is told of it is the model's own opinion."""
        request = {"prompt": before, "max_tokens": 1, "temperature": 0, "logprobs": 0, "ignore_eos": True}
        request |= {"logit_bias": {str(token): _FORCED}, "return_token_ids": True}
        try:
            (choice,) = (await self._client.fetch("POST", "/v1/completions", request))["choices"]
        except ServerError:
            return None  # a model with fewer words, or no room for one more
        return float(choice["logprobs"]["token_logprobs"][0]) if choice["token_ids"] == [token] else None


_REASONS = {"tool_calls": "stop"}  # what is recorded is how the text ended, whatever was read in it


def _again(request: dict[str, Any]) -> dict[str, Any]:
    """The request as it is replayed: neither the name under which a model is served nor streaming changes a token."""
    kept = {name: value for name, value in request.items() if name not in ("model", "stream", "stream_options")}
    return kept | {"return_token_ids": True}


def _recorded(choice: RecordedChoice) -> list[Told]:
    logprobs: Sequence[float | None] = choice.logprobs or [None] * len(choice.token_ids)
    return [Told(*said) for said in zip(choice.token_ids, logprobs, strict=True)]


def _told(choice: dict[str, Any]) -> list[Told]:
    """Of either endpoint's choice."""
    said, ids = choice["logprobs"], choice["token_ids"]
    if not said:
        return [Told(id) for id in ids]
    logprobs = said["token_logprobs"] if "token_logprobs" in said else [entry["logprob"] for entry in said["content"]]
    own = logprobs[len(logprobs) - len(ids) :]  # those of an echoed prompt come first
    return [Told(*both) for both in zip(ids, own, strict=True)]


def _report(outcome: Outcome) -> str:
    kinds = ("equal", "different", "not answered", "failed or cancelled then", "no exchange")
    table = [f"{kind:<24}  {outcome.counts[kind]:>9,}" for kind in kinds]
    prints = [f"recorded on {was}, replayed on {now}" for was, now in sorted(outcome.fingerprints)]
    return "\n".join([*outcome.findings, f"{'answers':<24}  {'exchanges':>9}", *table, *prints])
