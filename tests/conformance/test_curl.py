"""curl: every call that the README shows, as it stands there, against a real server with the default model."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import RunningServer

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CALLS = [call for block in BLOCKS for call in re.findall(r"^curl .*?(?=\n\w|\Z)", block, re.MULTILINE | re.DOTALL)]


@pytest.fixture
def curl_home(server: RunningServer, tmp_path: Path) -> Path:
    """Settings by which curl reaches this server at the address of the README's, and fails where the server refuses."""
    assert shutil.which("curl"), "curl is not installed"
    settings = ["silent", "show-error", "fail-with-body", f"connect-to = 127.0.0.1:8000:127.0.0.1:{server.port}"]
    (tmp_path / ".curlrc").write_text("\n".join(settings))
    return tmp_path


def run(call: str, home: Path) -> str:
    environment = os.environ | {"CURL_HOME": str(home)}
    return subprocess.run(["sh", "-c", call], env=environment, check=True, stdout=-1, text=True, timeout=120).stdout


@pytest.mark.proves("streams")
def test_the_readmes_first_call_streams_the_answer(curl_home: Path) -> None:
    said = run(CALLS[0], curl_home)
    assert "".join(re.findall(r'"delta":\{"content":"(.*?)"', said)) == "The capital of France is Paris."
    assert said.endswith("data: [DONE]\n\n")
