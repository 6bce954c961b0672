"""The series: their names, what moves them, and that every request ends once."""

import asyncio
import re
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.engine.messages import Ready
from server.engine.streams import Stages
from server.generator import Piece, Usage
from server.metrics import LAG_PERIOD_S, VLLM_NAMES, Metrics

UNITS = ("seconds", "tokens", "ratio", "info", "blocks", "running", "waiting")
READY = Ready(
    device="cpu",
    dtype="float32",
    kv_dtype="float16",
    kernels="portable",
    is_exact=True,
    weights="",
    block_size=16,
    block_bytes=1,
    total_blocks=10,
    memory_plan="",
    step_seconds=0,
)


def families(metrics: Metrics) -> dict:
    return {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    for family in families(metrics).values():
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"no series {name} with {labels}")


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.serving("tiny", READY)
    return metrics


def test_names_follow_the_rules_of_prometheus(metrics):
    for family in families(metrics).values():
        if family.name.startswith("vllm:"):
            continue
        assert re.fullmatch(r"headrace_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        names = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert all(name.endswith("_total") for name in names)
        else:
            assert not any(name.endswith("_total") for name in names)
            assert family.name.endswith(UNITS), family.name
        for sample in family.samples:
            assert set(sample.labels) <= {"le", "state", "reason", "version", "torch", "model", "device", "dtype"} | {
                "block_size",
                "blocks",
            }


def test_latency_buckets_begin_at_a_millisecond(metrics):
    for family in families(metrics).values():
        if family.type == "histogram" and family.name.endswith("_seconds"):
            edges = [float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")]
            assert edges[0] == 0.001
            assert edges == sorted(edges)


def test_vllms_names_say_the_same_as_ours(metrics, stats):
    metrics.step(stats)
    shown = families(metrics)
    for ours, theirs in VLLM_NAMES.items():
        mine = [(sample.name.removeprefix(ours), sample.value) for sample in shown[ours].samples]
        other = [(sample.name.removeprefix(theirs), sample.value) for sample in shown[theirs].samples]
        assert mine == other
        assert all(sample.labels["model_name"] == "tiny" for sample in shown[theirs].samples)
    assert value(metrics, "vllm:num_requests_waiting", engine="0") == 2
    assert value(metrics, "vllm:kv_cache_usage_perc") == 0.3
    assert value(metrics, "vllm:cache_config_info", block_size="16", num_gpu_blocks="10") == 1
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") == 0


def test_vllms_names_can_be_left_out():
    metrics = Metrics(vllm_names=False)
    metrics.serving("tiny", READY)
    assert b"vllm:" not in metrics.render()


def test_a_step_shows_the_engines_state(metrics, stats):
    metrics.step(stats)
    assert {state: value(metrics, "headrace_kv_blocks", state=state) for state in ("free", "cached", "used")} == {
        "free": 5,
        "cached": 2,
        "used": 3,
    }
    assert value(metrics, "headrace_preemptions_total") == 4
    assert value(metrics, "headrace_step_seconds_sum") == pytest.approx(0.004)
    assert value(metrics, "headrace_step_length_tokens_sum") == 7
    assert 0 <= value(metrics, "headrace_engine_last_step_age_seconds") < 60


async def test_an_event_loop_that_is_kept_busy_is_seen_to_lag(metrics):
    watching = asyncio.create_task(metrics.watch_loop())
    await asyncio.sleep(0)
    time.sleep(LAG_PERIOD_S + 0.1)  # noqa: ASYNC251  the fault to be seen
    await asyncio.sleep(0.001)
    watching.cancel()
    assert value(metrics, "headrace_event_loop_lag_seconds_count") == 1
    assert value(metrics, "headrace_event_loop_lag_seconds_sum") >= 0.1


def test_a_request_is_followed_from_its_first_piece_to_its_one_end(metrics):
    meter = metrics.request_accepted(arrived=0.0)
    meter.progressed([Piece(0, "a", [], None), Piece(1, "a", [], None)], Usage(5, 2, 0))
    meter.progressed([Piece(0, "b", [], "stop"), Piece(1, "b", [], "length")], Usage(5, 4, 0))
    assert meter.natural_end == "length"
    meter.ended(meter.natural_end, Usage(5, 4, 0))
    assert value(metrics, "headrace_time_to_first_token_seconds_count") == 1
    assert value(metrics, "headrace_inter_token_latency_seconds_count") == 2
    assert value(metrics, "headrace_generation_tokens_total") == 4
    assert value(metrics, "headrace_prompt_tokens_total") == 5
    assert value(metrics, "headrace_requests_finished_total", reason="length") == 1


def test_stages_that_a_sequence_never_reached_are_not_counted(metrics):
    metrics.sequence_ended(Stages(0.1, None, None))
    metrics.sequence_ended(Stages(0.1, 0.2, 0.3))
    counts = [value(metrics, f"headrace_request_{stage}_seconds_count") for stage in ("queue", "prefill", "decode")]
    assert counts == [2, 1, 1]


def test_ends_add_up_to_the_accepted_and_the_series_stay_the_same(own_server):
    def ask(**fields: object) -> None:
        own_server.http.post("/v1/completions", json={"prompt": "Hi", **fields})

    def series() -> set[str]:
        lines = own_server.http.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if line[0] != "#"}

    ask(temperature=3)
    before = series()
    for fields in [{}, {"max_tokens": 3}, {"stream": True}, {"n": 3}, {"temperature": 9}, {"stop": "llo"}] * 3:
        ask(**fields)
    assert series() == before
    ends = {
        reason: own_server.gained(f'headrace_requests_finished_total{{reason="{reason}"}}')
        for reason in ("stop", "length", "error", "disconnect")
    }
    assert ends == {"stop": 12, "length": 3, "error": 0, "disconnect": 0}
    assert own_server.gained("headrace_requests_accepted_total") == 15
    assert own_server.gained('headrace_requests_rejected_total{reason="decimal_above_max_value"}') == 4
    assert own_server.gained("headrace_prompt_tokens_total") == 15 * 2


def test_metrics_are_text_that_prometheus_reads(served):
    answer = served.http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = [family.name for family in text_string_to_metric_families(answer.text)]
    assert len(names) == len(set(names))
