"""A small real OpenAI-compatible server whose tokens and misbehaviour the test decides."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

WORD_TOKENS, OVERHEAD = 2, 7  # this server makes two tokens of a word, and adds seven to every text


@dataclass
class FakeServer:
    """Answers every completion with `max_tokens` chunks of one token; `mode` says how it goes wrong."""

    mode: str = "good"
    has_tokenize: bool = True
    delay_s: float = 0.0  # before the first token
    silent_after: int | None = None  # streams answered before it answers no more
    fell_silent: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    bodies: list[dict] = field(default_factory=list)  # of streamed completions
    headers: list[str] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False closes the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length) or b"null")
        self.headers.append(head)
        method, path, _ = head.split(" ", 2)
        if method == "GET" and path == "/v1/models":
            return send(writer, 200, {"object": "list", "data": [{"id": "fake-model"}]})
        if path == "/tokenize" and self.has_tokenize:
            return send(writer, 200, {"tokens": [ord(letter) for letter in body["prompt"]]})
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return send(writer, 404, {"error": {"message": f"no {path}"}})
        if not body.get("stream"):
            return send(writer, 200, {"usage": {"prompt_tokens": prompt_tokens(body), "completion_tokens": 1}})
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._stream(body, path.startswith("/v1/chat"), writer)
        finally:
            self.in_flight -= 1

    async def _stream(self, body: dict, is_chat: bool, writer: asyncio.StreamWriter) -> bool:
        if self.mode == "503":
            return send(writer, 503, {"error": {"message": "queue is full"}})
        if self.mode == "not http":
            writer.write(b"what?\r\n\r\n")
            return False
        if self.silent_after is not None and len(self.bodies) > self.silent_after:
            self.fell_silent.set()
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay_s)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number, chunk in enumerate(chunks(body, is_chat)):
            if number == 2 and self.mode == "cut":
                return False
            if number == 2 and self.mode == "sse error":
                chunk = {"error": {"message": "engine died"}}
            if self.mode != "no usage" or not chunk.get("usage"):
                send_event(writer, chunk)
            await writer.drain()
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()
        return self.mode != "hangs up"


def chunks(body: dict, is_chat: bool) -> Iterator[dict]:
    """An opening without text, a chunk per token, the usage."""
    count = body["max_tokens"]
    yield {"choices": [{"index": 0, **({"delta": {"role": "assistant", "content": ""}} if is_chat else {"text": ""})}]}
    for number in range(1, count + 1):
        text = {"delta": {"content": "x"}} if is_chat else {"text": "x"}
        yield {"choices": [{"index": 0, **text, "finish_reason": "length" if number == count else None}], "usage": None}
    details = {"prompt_tokens_details": {"cached_tokens": 3}}
    yield {"choices": [], "usage": {"prompt_tokens": prompt_tokens(body), "completion_tokens": count, **details}}


def prompt_tokens(body: dict) -> int:
    prompt = body.get("prompt") or body["messages"][0]["content"]
    return len(prompt) if isinstance(prompt, list) else OVERHEAD + WORD_TOKENS * len(prompt.split())


def send(writer: asyncio.StreamWriter, status: int, body: dict) -> bool:
    data = json.dumps(body).encode()
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    return True


def send_event(writer: asyncio.StreamWriter, chunk: dict) -> None:
    data = f"data: {json.dumps(chunk)}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@asynccontextmanager
async def listening(fake: FakeServer) -> AsyncIterator[FakeServer]:
    tasks: set[asyncio.Task] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(fake.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    async with listening(FakeServer()) as server:
        yield server


@pytest.fixture
async def second_fake() -> AsyncIterator[FakeServer]:
    async with listening(FakeServer(delay_s=0.02)) as server:
        yield server
