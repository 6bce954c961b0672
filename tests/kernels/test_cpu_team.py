"""Whether the threads share work without stepping on each other, and rest when there is none."""

import os
import threading
import time
from collections.abc import Callable

import pytest
import torch

from model.kernels import Kernels, cpu, select
from model.kernels.cpu import CpuKernels
from model.kernels.reference import Weight

MakeWeight = Callable[[str, int, int], Weight]


def test_an_idle_team_uses_no_processor_time(kernels: CpuKernels) -> None:
    x = torch.randn(64, 1024)
    shares = []
    for _ in range(3):  # torch's own threads may still be spinning in the first round
        kernels.activate(x, "silu")
        started, used = time.monotonic(), time.process_time()
        time.sleep(0.2)
        shares.append((time.process_time() - used) / (time.monotonic() - started))
    assert min(shares) <= 0.01


def test_callers_on_several_threads_do_not_disturb_each_other(kernels: CpuKernels, make_weight: MakeWeight) -> None:
    weight = kernels.prepare(make_weight("Q4_1", 256, 256))
    inputs = [torch.randn(1 + 16 * i, 256) for i in range(4)]
    expected = [kernels.linear(x_TD, weight) for x_TD in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        wrong.extend(i for _ in range(200) if not torch.equal(kernels.linear(inputs[i], weight), expected[i]))

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_forked_child_computes_alone(kernels: CpuKernels, make_weight: MakeWeight) -> None:
    weight, x_TD = kernels.prepare(make_weight("Q4_1", 256, 256)), torch.randn(40, 256)
    expected = kernels.linear(x_TD, weight)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(kernels.linear(x_TD, weight), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_fp32_on_a_cpu_gets_these_kernels() -> None:
    assert isinstance(select(torch.device("cpu"), torch.float32), CpuKernels)
    assert type(select(torch.device("cpu"), torch.bfloat16)) is Kernels


def test_without_the_library_plain_torch_takes_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "find_library", lambda: None)
    assert type(select(torch.device("cpu"), torch.float32)) is Kernels
    assert "cpu kernels not available" in caplog.text
