"""The `llm` command with the model in its extra-openai-models.yaml, unchanged, against a real server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ASKED = "What is the capital of France?"
PARIS = "The capital of France is Paris."
LLM = Path(sys.executable).with_name("llm")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base_url: str, model: str) -> Run:
    folder = tmp_path_factory.mktemp("llm")
    known = {"model_id": "headrace", "model_name": model, "api_base": base_url, "api_key_name": "none"}
    known |= {"supports_tools": True, "supports_schema": True}
    (folder / "extra-openai-models.yaml").write_text(json.dumps([known]))
    (folder / "keys.json").write_text(json.dumps({"none": "none"}))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [LLM, "-m", "headrace", "-o", "temperature", "0", *arguments]
        environment = os.environ | {"LLM_USER_PATH": str(folder)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    return run


@pytest.mark.proves("answers")
def test_a_question_is_answered(run: Run) -> None:
    assert run("--no-stream", ASKED).stdout == f"{PARIS}\n"


@pytest.mark.proves("streams")
def test_a_stream_says_the_same_and_is_counted(run: Run) -> None:
    ran = run("--usage", ASKED)
    assert ran.stdout == f"{PARIS}\n"
    assert "Token usage:" in ran.stderr


@pytest.mark.proves("structured")
def test_an_answer_follows_a_schema(run: Run) -> None:
    schema = {"type": "object", "properties": {"is_capital": {"type": "boolean"}}, "required": ["is_capital"]}
    ran = run("--schema", json.dumps(schema | {"additionalProperties": False}), ASKED)
    assert isinstance(json.loads(ran.stdout)["is_capital"], bool)


@pytest.mark.proves("errors")
def test_a_refusal_is_told_in_the_servers_words(run: Run) -> None:
    ran = run("-o", "temperature", "1.5", "-o", "max_tokens", "1000000", ASKED)
    assert ran.returncode == 1
    assert "maximum context length" in ran.stderr
