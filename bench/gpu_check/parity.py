"""Whether every Triton kernel computes what the reference specifies: the test suite's own cases, on the device.

They say what tolerance each precision has, and hold every operation to equal bits in any batch and in a hundred runs.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from bench.gpu_check.report import table
from bench.gpu_check.section import ROOT, Failed, Options

OFFLINE = "test_triton_compile.py"  # needs no device, so that the suite has run it
QUICK = ("tests/kernels/test_triton_parity.py", "-k", "norms or argmax")
MESSAGE_LETTERS = 160


def check(options: Options) -> Iterator[str]:
    if find_spec("pytest") is None:
        raise Failed("pytest is not installed: pip install 'headrace[test]'")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        run = _pytest(options, results)
        if not results.is_file():
            raise Failed(f"pytest ended with {run.returncode}: {run.stdout.strip()[-MESSAGE_LETTERS:]}")
        yield from findings(list(ET.parse(results).iter("testcase")))
    if run.returncode != 0:
        raise Failed(f"pytest ended with {run.returncode}: {run.stdout.strip()[-MESSAGE_LETTERS:]}")


def findings(cases: list[ET.Element]) -> Iterator[str]:
    """Raises Failed where one has failed, or all were skipped."""
    failed = [case for case in cases if _fault(case) is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    tests = {_name(case) for case in cases}
    yield f"{len(cases)} cases of {len(tests)} tests: {len(failed)} failed, {skipped} skipped."
    if failed:
        yield table([["failed", "cases", "first of them"], *_by_test(failed)])
        raise Failed(f"{len(failed)} of {len(cases)} cases")
    if len(cases) == skipped:
        raise Failed("no case was run")


def _pytest(options: Options, results: Path) -> subprocess.CompletedProcess[str]:
    folder = ROOT / "tests/kernels"
    files = [str(file) for file in sorted(folder.glob("test_triton_*.py")) if file.name != OFFLINE]
    command = [sys.executable, "-P", "-m", "pytest", *(QUICK if options.quick else files), "--junit-xml", str(results)]
    environment = os.environ | {"HEADRACE_TEST_DEVICE": options.device}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _name(case: ET.Element) -> str:
    return case.attrib["name"].partition("[")[0]


def _fault(case: ET.Element) -> ET.Element | None:
    failure = case.find("failure")
    return case.find("error") if failure is None else failure


def _by_test(failed: list[ET.Element]) -> list[list[str]]:
    """One row for each test, with how its first case failed."""
    rows = []
    for name in dict.fromkeys(map(_name, failed)):
        cases = [case for case in failed if _name(case) == name]
        fault = _fault(cases[0])
        assert fault is not None, "it has failed"
        first = f"{cases[0].attrib['name']}: {fault.attrib.get('message', '')}".splitlines()[0]
        rows.append([name, str(len(cases)), first[:MESSAGE_LETTERS]])
    return rows
