"""A server whose HTTP side runs in this process, so that a test can reach into it, and whose engine is a child."""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from support import START_TIMEOUT_S, wait_until

from server.api.service import AppOptions
from server.app import create_app
from server.config import EngineOptions
from server.engine.child import ENGINE
from server.engine.client import EngineClient
from server.engine.supervisor import Care
from server.metrics import Metrics
from server.text_tools import load_text

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Served:
    http: httpx.Client
    engine: EngineClient

    def post(self, path: str, **body: Any) -> Body:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        answered: Body = answer.json()
        return answered

    def complete(self, **body: Any) -> Body:
        """A completion whose length only `max_tokens` and stop strings bound."""
        return self.post("/v1/completions", ignore_eos=True, **body)

    def stream(self, **body: Any) -> list[Body]:
        """The events of the same, which must end with [DONE]."""
        body = {"ignore_eos": True, "stream": True} | body
        with self.http.stream("POST", "/v1/completions", json=body) as answer:
            events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]

    def replace_engine(self) -> None:
        """Kills the engine; the next request is for another process."""
        before = self.engine.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: self.engine.is_up and self.engine.pid != before, START_TIMEOUT_S)


@contextmanager
def serving(model: Path, command: tuple[str, ...] = ENGINE) -> Iterator[Served]:
    engine = EngineClient(EngineOptions(model=str(model), check_invariants=True), 1024, care=Care(command=command))
    app = create_app(AppOptions(), engine, Metrics(), lambda card: load_text(card, engine))
    config = uvicorn.Config(app, log_config=None, loop="uvloop", http="httptools", ws="none", access_log=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60) as http:
                wait_until(lambda: http.get("/health/ready").status_code == 200, START_TIMEOUT_S)
                yield Served(http, engine)
        finally:
            server.should_exit = True
            thread.join()
