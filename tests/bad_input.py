"""Bad input, row by row of `bad_input.json`: each as the bytes of a request, and what its answer has to be like.

A row is a request to `path`, a POST unless `method` says otherwise, whose body is a valid one `with` other fields,
`raw` text or `hex`; or it is all that goes over the `wire`, in hexadecimal. Its `headers` replace the usual ones: null
for none, a list for several. A text such as "$x*70000" is 70000 times "x". `server` names the state that the server has
to be in; without it, it serves whoever has `KEY`. What needs more than one request is `proven_by` a test of its own.
"""

import json
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROWS: list[Row] = json.loads((Path(__file__).parent / "api" / "bad_input.json").read_text())
ASKED = [row for row in ROWS if "status" in row]
SERVING = [row for row in ASKED if "server" not in row]
KEY = "right-key"
MAX_BODY = 2**17
LONGEST_ANSWER = 2048
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "decisions": "/v1/decisions",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
    "load": "/v1/load_lora_adapter",
    "unload": "/v1/unload_lora_adapter",
}
VALID: dict[str, Row] = {
    "chat": {"messages": [{"role": "user", "content": "Hi"}]},
    "completions": {"prompt": "Hi"},
    "responses": {"input": "Hi"},
    "embeddings": {"input": "Hi"},
    "decisions": {"input": "Hi", "questions": [{"type": "predicate", "instructions": "Is it a greeting?"}]},
    "load": {"lora_name": "a", "lora_path": "b"},
    "unload": {"lora_name": "a"},
}
OWN_ID = re.compile(r"req-[0-9a-f]{32}")
REPEATED = re.compile(r"\$([^*]+)\*(\d+)")
LEAKS = re.compile(r"0x[0-9a-f]{6}|/(work|root|home|usr|tmp)/|Traceback|<class|pydantic|Input should|[A-Z][a-z]+Body")


def name_of(row: Row) -> str:
    return f"row {row['row']}"


def expand(text: str) -> str:
    return REPEATED.sub(lambda found: found[1] * int(found[2]), text)


def body_of(row: Row) -> bytes:
    if "hex" in row:
        return bytes.fromhex(row["hex"])
    if "raw" in row or "with" not in row:
        return expand(row.get("raw", "")).encode()
    return expand(json.dumps(VALID.get(row["path"], {}) | row["with"])).encode()


def request_of(row: Row) -> bytes:
    if "wire" in row:
        return bytes.fromhex(row["wire"])
    body, method = body_of(row), row.get("method", "POST")
    headers: dict[str, str | list[str] | None] = {"host": "x", "authorization": f"Bearer {KEY}"}
    if method == "POST":
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
    lines = [f"{method} {PATHS.get(row['path'], row['path'])} HTTP/1.1"]
    for name, value in (headers | row.get("headers", {})).items():
        values = value if isinstance(value, list) else [value]
        lines += [f"{expand(name)}: {expand(each)}" for each in values if each is not None]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def ask(port: int, request: bytes, timeout_s: float = 60.0) -> Answer:
    """Over a connection of its own, of which nothing but the answer is waited for."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # where it is refused before all of it is sent
            connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())


def check(row: Row, answer: Answer) -> None:
    """Raises AssertionError unless the answer is the row's."""
    assert answer.status == row["status"], answer.body[:300]
    for name, value in row.get("answers", {}).items():
        assert answer.headers[name] == value
    assert answer.headers["content-type"] == "application/json"
    assert row.get("answers", {}).get("x-request-id") or OWN_ID.fullmatch(answer.headers["x-request-id"])
    if answer.status == 200:
        assert row.get("says", "") in answer.body.decode()
        return
    error = check_error(answer.body)
    wanted = (row["code"], row["param"], row.get("type", "invalid_request_error"))
    assert (error["code"], error["param"], error["type"]) == wanted
    assert row.get("says", "") in error["message"]


def check_error(body: bytes) -> Row:
    """What every refusal has in common; raises AssertionError where one has not."""
    assert len(body) <= LONGEST_ANSWER
    assert not LEAKS.search(body.decode())
    answered: dict[str, Row] = json.loads(body)
    assert answered.keys() == {"error"}
    assert answered["error"].keys() == {"message", "type", "param", "code"}
    return answered["error"]
