"""instructor, with the older packages that it asks for, unchanged, against a real server with the default model."""

import json
import os
import subprocess

import pytest
from installed import HERE, python_with


@pytest.mark.proves("structured")
@pytest.mark.parametrize("mode", ["JSON_SCHEMA", "TOOLS"])
def test_an_answer_is_an_object_of_the_schema(base_url: str, model: str, mode: str) -> None:
    command = [python_with("instructor"), HERE / "pip" / "instructor_client.py", mode]
    environment = os.environ | {"BASE_URL": base_url, "MODEL": model}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout).keys() == {"is_capital", "continent"}
