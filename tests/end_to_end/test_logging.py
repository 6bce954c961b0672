"""What the server writes to stdout, and that nobody who reads it badly can stop it."""

import fcntl
import json
import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx
from support import command, wait_until

SECRET = "Methuselah"
SMALLEST_PIPE = 4096  # bytes
F_SETPIPE_SZ = 1031


def test_a_stalled_and_then_a_closed_stdout_stop_nothing_and_no_line_has_a_prompt(tiny_model: Path) -> None:
    options = ["--model", str(tiny_model), "--port", "0", "--no-spare-engine", "--drain-delay", "0"]
    process = subprocess.Popen(
        [*command("serve"), *options, "--log-format", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        fcntl.fcntl(process.stdout, F_SETPIPE_SZ, SMALLEST_PIPE)
        url = json.loads(process.stdout.readline())["url"]
        with httpx.Client(base_url=url, timeout=60) as http:
            wait_until(lambda: http.get("/health/ready").status_code == 200, 120)
            last = ask_much(http)
            lines = []
            while not lines or lines[-1].get("request_id") != last or lines[-1]["event"] != "request":
                lines.append(json.loads(process.stdout.readline()))
            process.stdout.close()
            ask_much(http)
        assert len(json.dumps(lines)) > 2 * SMALLEST_PIPE, "it did not stall"
        assert not [line for line in lines if SECRET in json.dumps(line)]
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read().decode()
        assert process.wait(30) == 0
        assert SECRET not in said
        assert not re.search("Traceback|Broken", said)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def ask_much(http: httpx.Client) -> str:
    """Requests that are answered and such that are refused, with the secret in each; the last one's id."""
    messages = [{"role": "user", "content": SECRET}]
    for _ in range(8):
        assert http.post("/v1/completions", json={"prompt": SECRET, "max_tokens": 2}).status_code == 200
        assert http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2}).status_code == 200
        assert http.post("/v1/completions", json={"prompt": SECRET * 200, "max_tokens": 2}).status_code == 400
        assert http.post("/v1/completions", json={"prompt": [SECRET] * 500}).status_code == 400
        assert http.post("/v1/completions", content=f'{{"prompt": "{SECRET}'.encode()).status_code in (400, 415)
    return http.post("/tokenize", json={"prompt": SECRET}).headers["x-request-id"]


def test_a_server_without_stdout_serves(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = command("serve", "--model", str(tiny_model), "--port", str(port), "--drain-delay", "0", "--no-spare-engine")
    with subprocess.Popen(["bash", "-c", 'exec "$@" >&-', "-", *serve]) as process:
        try:
            wait_until(lambda: process.poll() is not None or is_ready(port), 120)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
    except httpx.ConnectError:
        return False
