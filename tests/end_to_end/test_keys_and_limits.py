"""Whether keys, limits and deadlines hold of a real server, as its options and its key file say."""

import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from support import command, running_server, wait_until

ASKED = {"prompt": "Hi", "max_tokens": 2}


def ask(url: str, key: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=ASKED, headers={"x-api-key": key}, timeout=60)


def test_a_key_file_opens_and_closes_a_running_server(tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada: one\ngrace: two requests=none\n")
    options = ("--api-key-file", str(keys), "--limit-requests", "2", "--head-timeout", "0.5")
    with running_server("--model", str(tiny_model), *options) as server:
        assert [ask(server.url, key).status_code for key in ("one", "one", "one", "two", "two", "two", "three")] == [
            *(200, 200, 429),
            *(200, 200, 200),
            401,
        ]
        assert "x-ratelimit-limit-requests" not in ask(server.url, "two").headers
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port), timeout=30) as slow:
            slow.sendall(b"POST /v1/comp")
            assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")
        keys.write_text("alan: three\n")
        wait_until(lambda: ask(server.url, "three").status_code == 200, 30)
        assert ask(server.url, "two").status_code == 401


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--limit-tokens", "100"], "limits are for each key, and there are no keys"),
        (["--api-key-file", "/nowhere/keys"], "/nowhere/keys: No such file or directory"),
        (["--cors-origin", "page.example"], "--cors-origin: 'page.example' is neither"),
    ],
)
def test_what_cannot_be_kept_is_said_at_the_start(options: list[str], says: str) -> None:
    ended = subprocess.run(command("serve", "--port", "0", *options), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"headrace: {says}")
    assert ended.stderr.count("\n") == 1
