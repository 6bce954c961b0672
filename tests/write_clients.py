"""Writes the table of clients into the README: `python -P tests/write_clients.py`."""

import ast
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TESTS = Path("tests/conformance")
COLUMNS = ("answers", "streams", "tools", "structured", "embeddings", "scores", "errors", "retries")
NODE_TEST = re.compile(r'^test\("(\w+): ', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    package: str
    lock: str  # the file that names its version
    tests: str


CLIENTS = (
    Client("openai for Python", "openai", "constraints.txt", "test_openai_python.py"),
    Client("openai for Node", "openai", "tests/conformance/node/package-lock.json", "node/openai.test.mjs"),
    Client("Vercel AI SDK", "ai", "tests/conformance/node/package-lock.json", "node/ai_sdk.test.mjs"),
    Client("LangChain", "langchain-openai", "constraints.txt", "test_langchain.py"),
    Client("anthropic for Python", "anthropic", "constraints.txt", "test_anthropic.py"),
    Client("the llm command", "llm", "constraints.txt", "test_llm_command.py"),
    Client("instructor", "instructor", "tests/conformance/pip/instructor.txt", "test_instructor.py"),
    Client("lm-eval", "lm_eval", "tests/conformance/pip/lm_eval.txt", "test_lm_eval.py"),
    Client("curl", "", "", "test_curl.py"),
)


def table() -> str:
    """A row a client, a column a capability: how many tests in the client's file prove it."""
    proven = {client: proofs((ROOT / TESTS / client.tests).read_text()) for client in CLIENTS}
    columns = [column for column in COLUMNS if any(counts[column] for counts in proven.values())]
    rows = [("client", *columns), ("---",) * (len(columns) + 1)]
    for client, counts in proven.items():
        name = f"[{client.name}]({TESTS / client.tests}) {version(client)}"
        rows.append((name.strip(), *(str(counts[column] or "") for column in columns)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def version(client: Client) -> str:
    text = (ROOT / client.lock).read_text() if client.lock else ""
    if client.lock.endswith(".json"):
        return str(json.loads(text)["packages"][f"node_modules/{client.package}"]["version"])
    pins = dict(line.split("==") for line in text.splitlines() if "==" in line)
    return pins.get(client.package, "")


def proofs(source: str) -> Counter[str]:
    """How many tests prove what, by the marks of Python's and the names of Node's."""
    if not source.startswith('"""'):
        return Counter(NODE_TEST.findall(source))
    decorators = [each for node in ast.walk(ast.parse(source)) for each in getattr(node, "decorator_list", ())]
    return Counter(
        ast.literal_eval(each.args[0])
        for each in decorators
        if isinstance(each, ast.Call) and ast.unparse(each.func) == "pytest.mark.proves"
    )


def main() -> None:
    text = README.read_text()
    README.write_text(re.sub(r"(<!-- clients: .*? -->\n).*?(<!-- end)", rf"\1{table()}\n\2", text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
