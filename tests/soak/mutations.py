"""What does a server make of valid requests with wrong bytes in them? An answer that is no 5xx, beside honest streams.

Each request has one to eight mutations: bits flipped, bytes replaced, put in, taken out, doubled, exchanged or cut
off, pieces of other requests grafted on. Half of them touch the body alone and announce its length rightly, so that
they reach the parser and what lies behind it, and must be answered; the others damage the framing as well, and if the
server waits for more, the client ends its side and the server must close. Meanwhile honest streams are told the same to
the last bit, the engine stays the same process, the books of the KV cache stay right, and in the end no block is used.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import honest
from bad_input import KEY, check_error
from bytes_model import write_bytes_model
from support import RunningServer, running_server, wait_until
from tqdm import tqdm

SERVER = ("--api-key", KEY, "--open-metrics", "--check-invariants", "--stream-grace", "1")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: list[tuple[str, dict[str, object]]] = [
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}),
    (CHAT, {"messages": [{"role": "system", "content": "Bé 日"}, {"role": "user", "content": "\u0000"}], "n": 2}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "stream": True, "seed": 5}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 3, "stop": ["a", "b"]}),
    (COMPLETIONS, {"prompt": "Once", "model": "bytes", "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1}),
    (COMPLETIONS, {"prompt": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}, "echo": True}),
    (COMPLETIONS, {"prompt": [[1, 2], [3, 255]], "logit_bias": {"5": 10, "256": -100}, "logprobs": 2}),
    (COMPLETIONS, {"prompt": [72, 105], "repetition_penalty": 1.1, "presence_penalty": 1, "frequency_penalty": -1}),
    (COMPLETIONS, {"prompt": "x", "min_tokens": 2, "stop_token_ids": [9, 10], "ignore_eos": True, "user": "u"}),
    ("/tokenize", {"prompt": "Hello, world", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [72, 101, 255, 256]}),
]
TELLING = [b"\x00", b"\xff", b"\n", b"\r\n", b'"', b"\\", b"\\u", b"{", b"}", b"[", b"]", b":", b",", b"-", b"9", b"e9"]
TELLING += [b"0", b".", b"\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"null", b"NaN", b"true", b"1e999", b" ", b"\\ud800"]
STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})", re.MULTILINE)
CLIENTS = 16
QUIET_S = 1.0  # without a byte after which a client whose framing is damaged ends its side
HANG_S = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    body: bytes
    headers: tuple[str, ...] = ()

    @property
    def wire(self) -> bytes:
        lines = [f"POST {self.path} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(self.body)}", *self.headers, "", ""]
        return "\r\n".join(lines).encode() + self.body


VALID = [Request(path, json.dumps(body, ensure_ascii=False).encode()) for path, body in BODIES]
VALID += [Request(COMPLETIONS, b'{"prompt":"a","stream":true}', ("X-Headrace-Resumable: true", "X-Request-Id: mine"))]


class Mutator:
    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    def request(self) -> tuple[bytes, bool]:
        """What goes over the wire, and whether its framing is whole, so that it must be answered."""
        valid = self._draw.choice(VALID)
        if self._draw.random() < 0.5:
            return Request(valid.path, self._damage(valid.body), valid.headers).wire, True
        return self._damage(valid.wire), False

    def _damage(self, data: bytes) -> bytes:
        for _ in range(self._draw.choice((1, 1, 1, 2, 3, 5, 8))):
            data = self._draw.choice(self._WAYS)(self, data)
        return data

    def _span(self, data: bytes) -> tuple[int, int]:
        start = self._draw.randint(0, len(data))
        return start, min(len(data), start + self._draw.choice((1, 1, 2, 4, 16, 64)))

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        place = self._draw.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << self._draw.randrange(8)]) + data[place + 1 :]

    def _replace(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + self._draw.choice(TELLING) + data[end:]

    def _insert(self, data: bytes) -> bytes:
        start, _ = self._span(data)
        return data[:start] + self._draw.choice(TELLING) * self._draw.choice((1, 1, 2, 300)) + data[start:]

    def _delete(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[end:]

    def _double(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:end] + data[start:]

    def _exchange(self, data: bytes) -> bytes:
        (start, middle), length = self._span(data), self._draw.randrange(64)
        return data[:start] + data[middle : middle + length] + data[start:middle] + data[middle + length :]

    def _cut(self, data: bytes) -> bytes:
        return data[: self._draw.randint(0, len(data))]

    def _graft(self, data: bytes) -> bytes:
        other = self._draw.choice(VALID).wire
        return data[: self._draw.randint(0, len(data))] + other[self._draw.randint(0, len(other)) :]

    _WAYS: tuple[Callable[["Mutator", bytes], bytes], ...] = (
        _flip, _flip, _replace, _replace, _insert, _insert, _delete, _double, _exchange, _cut, _graft,
    )  # fmt: skip


@dataclass(slots=True)
class Outcome:
    statuses: Counter[str] = field(default_factory=Counter)  # "" of those that were closed without an answer
    faults: list[str] = field(default_factory=list)
    rounds: int = 0  # of honest streams

    def judge(self, request: bytes, answer: bytes) -> None:
        found = [status.decode() for status in STATUS.findall(answer)]
        self.statuses[found[0] if found else ""] += 1
        head, _, body = answer.partition(b"\r\n\r\n")
        is_ours = len(found) == 1 and found[0] >= "400" and b"application/json" in head
        try:
            assert all(status < "500" or status == "503" for status in found)
            assert b'"type":"server_error"' not in body or not is_ours
            if is_ours:
                check_error(body)
        except (AssertionError, ValueError) as error:
            self.faults.append(f"{request!r} was answered {answer[:500]!r} {error}")


async def _exchange(port: int, request: bytes, is_whole: bool) -> bytes:
    """All that comes back until the server closes; raises TimeoutError where it neither answers nor closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()

    async def read() -> None:
        while some := await reader.read(65536):
            received.extend(some)

    try:
        with suppress(ConnectionError):  # a server that refuses early closes on what it has not read
            writer.write(request)
            if is_whole:
                await asyncio.wait_for(read(), HANG_S)
                return bytes(received)
            reading = asyncio.create_task(read())
            while not reading.done():
                before = len(received)
                await asyncio.wait([reading], timeout=QUIET_S)
                if len(received) == before and not reading.done():
                    writer.write_eof()
                    await asyncio.wait_for(reading, HANG_S)
            await reading
    finally:
        writer.close()
    return bytes(received)


def send(port: int, count: int, outcome: Outcome, seed: int = 0) -> None:
    """Some at a time, from as many clients, each over a connection of its own."""
    asyncio.run(_send_all(port, count, outcome, seed))


async def _send_all(port: int, count: int, outcome: Outcome, seed: int) -> None:
    mutator, left = Mutator(random.Random(seed)), iter(range(count))
    with tqdm(total=count, unit="request", mininterval=1) as bar:

        async def be_a_client() -> None:
            for _ in left:
                request, is_whole = mutator.request()
                try:
                    answer = await _exchange(port, request, is_whole)
                    if is_whole and not answer:
                        outcome.faults.append(f"{request!r} was not answered")
                    outcome.judge(request, answer)
                except TimeoutError:
                    outcome.faults.append(f"{request!r} hung")
                bar.update()

        await asyncio.gather(*(be_a_client() for _ in range(CLIENTS)))


def soak(server: RunningServer, count: int, seed: int = 0) -> Outcome:
    """Sends `count` mutated requests beside honest streams; what went wrong is in the outcome."""
    outcome, engine, alone = Outcome(), server.engine, honest.alone(server.url, KEY)
    told = honest.beside(server.url, lambda: send(server.port, count, outcome, seed), KEY)
    outcome.rounds = len(told)
    outcome.faults += [
        f"honest streams were told something else in round {i}" for i, t in enumerate(told) if t != alone
    ]
    outcome.faults += check_server(server, engine)
    return outcome


def check_server(server: RunningServer, engine: int) -> list[str]:
    """What is wrong with it after all of that, in words."""
    wrong = [] if server.engine == engine else ["the engine is another one"]
    if server.metric("headrace_kv_invariant_violations_total"):
        wrong.append("the books of the KV cache were wrong")
    wait_until(lambda: server.metric('headrace_kv_blocks{state="used"}') == 0, HANG_S)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_bytes_model(Path(folder) / "bytes")
        with running_server("--model", str(model), *SERVER) as server:
            start = time.monotonic()
            outcome = soak(server, arguments.requests, arguments.seed)
            seconds = time.monotonic() - start
    print(
        f"{outcome.statuses.total()} requests in {seconds:.0f} s, {outcome.rounds} rounds of honest streams beside them"
    )
    print(", ".join(f"{count} x {status or 'closed'}" for status, count in sorted(outcome.statuses.items())))
    print(f"{len(outcome.faults)} faults", *outcome.faults[:10], sep="\n")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
