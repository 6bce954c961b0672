"""Every series that the server exposes, declared once; vLLM's names for them are computed when they are read."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.messages import Ready, Stats
from server.engine.streams import Stages
from server.engine.supervisor import CAUSES, Cause
from server.generator import Piece, Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

EndReason = Literal["stop", "length", "error", "disconnect"]
END_REASONS: tuple[EndReason, ...] = ("stop", "length", "error", "disconnect")

# Seconds. From 1 ms up, because a small model answers in milliseconds.
GAPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0)
WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0)
LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
LAG_PERIOD_S = 0.25
STEP_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

# Gateways and autoscalers look for vLLM's names first. Counters stand here without their suffix `_total`.
VLLM_NAMES = {
    "headrace_requests_running": "vllm:num_requests_running",
    "headrace_requests_waiting": "vllm:num_requests_waiting",
    "headrace_preemptions": "vllm:num_preemptions",
    "headrace_prefix_cache_query_tokens": "vllm:prefix_cache_queries",
    "headrace_prefix_cache_hit_tokens": "vllm:prefix_cache_hits",
    "headrace_draft_tokens": "vllm:spec_decode_num_draft_tokens",
    "headrace_draft_tokens_accepted": "vllm:spec_decode_num_accepted_tokens",
    "headrace_prompt_tokens": "vllm:prompt_tokens",
    "headrace_generation_tokens": "vllm:generation_tokens",
    "headrace_requests_finished": "vllm:request_success",
    "headrace_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "headrace_inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "headrace_request_duration_seconds": "vllm:e2e_request_latency_seconds",
    "headrace_request_queue_seconds": "vllm:request_queue_time_seconds",
    "headrace_request_prefill_seconds": "vllm:request_prefill_time_seconds",
    "headrace_request_decode_seconds": "vllm:request_decode_time_seconds",
    "headrace_request_prompt_length_tokens": "vllm:request_prompt_tokens",
    "headrace_request_generation_length_tokens": "vllm:request_generation_tokens",
    "headrace_step_length_tokens": "vllm:iteration_tokens_total",
    "headrace_kv_cache_usage_ratio": "vllm:kv_cache_usage_perc",
    "headrace_kv_cache_info": "vllm:cache_config_info",
}
VLLM_LABELS = {"reason": "finished_reason", "blocks": "num_gpu_blocks"}
VLLM_VALUES = {"disconnect": "abort"}


class RequestMeter:
    """Follows one accepted request to its one end."""

    __slots__ = ("_arrived", "_generated", "_key", "_last", "_metrics", "natural_end")

    def __init__(self, metrics: "Metrics", arrived: float, key: str | None) -> None:
        self._metrics = metrics
        self._key = key
        self._arrived = arrived
        self._last: dict[int, float] = {}  # choice -> when it last moved
        self._generated = 0
        self.natural_end: EndReason = "stop"  # how the request ends if nothing befalls it

    def progressed(self, pieces: list[Piece], usage: Usage) -> None:
        """These pieces have become ready together."""
        now = time.monotonic()
        if not self._last and usage.completion_tokens:
            self._metrics.time_to_first_token.observe(now - self._arrived)
        for piece in pieces:
            last = self._last.get(piece.index)
            if last is not None:
                self._metrics.inter_token_latency.observe(now - last)
            self._last[piece.index] = now
            if piece.finish_reason == "length" and usage.completion_tokens:  # what is only read is not cut short
                self.natural_end = "length"  # of several choices, one that was cut short decides
        self._count(usage)

    def ended(self, reason: EndReason, usage: Usage) -> None:
        """Exactly once per accepted request."""
        metrics = self._metrics
        self._count(usage)
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.finished.labels(reason).inc()
        metrics.duration.observe(time.monotonic() - self._arrived)
        metrics.prompt_length.observe(usage.prompt_tokens)
        metrics.generation_length.observe(usage.completion_tokens)
        if self._key is not None:
            metrics.key_requests.labels(self._key).inc()
            metrics.key_tokens.labels(self._key).inc(usage.prompt_tokens + usage.completion_tokens)

    def _count(self, usage: Usage) -> None:
        self._metrics.generation_tokens.inc(usage.completion_tokens - self._generated)
        self._generated = usage.completion_tokens


class EngineState(Collector):
    """What the engine last said of itself, as series that exist from the start."""

    def __init__(self) -> None:
        self.stats: Stats | None = None
        self.ready: Ready | None = None
        self.model = ""
        self.last_step = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        stats = self.stats or NOTHING
        yield _gauge("requests_running", "Sequences that the engine computes.", stats.running)
        yield _gauge("requests_waiting", "Sequences that wait for their first step.", stats.waiting)
        yield _counter("preemptions", "Sequences put back to make room in the KV cache.", stats.preemptions)
        yield _counter("prefix_cache_query_tokens", "Prompt tokens looked up.", stats.prefix_queries)
        yield _counter("prefix_cache_hit_tokens", "Of those, tokens found.", stats.prefix_hits)
        yield _counter("draft_tokens", "Tokens guessed ahead and computed.", stats.drafts_proposed)
        yield _counter("draft_tokens_accepted", "Of those, tokens that came true.", stats.drafts_accepted)
        yield _counter("kv_invariant_violations", "Block counts that did not add up.", stats.invariant_violations)
        yield from self._cache(stats)
        age = time.monotonic() - self.last_step
        yield _gauge("engine_last_step_age_seconds", "Time since the last step, or since the start; idle counts.", age)
        build = GaugeMetricFamily("headrace_build_info", "What runs here.", labels=["version", "torch"])
        build.add_metric([version("headrace"), version("torch")], 1)
        yield build
        if self.ready is not None:
            engine = GaugeMetricFamily("headrace_engine_info", "What it runs on.", labels=["model", "device", "dtype"])
            engine.add_metric([self.model, self.ready.device, self.ready.dtype], 1)
            yield engine

    def _cache(self, stats: Stats) -> Iterator[Metric]:
        blocks = GaugeMetricFamily("headrace_kv_blocks", "Blocks of the KV cache by state.", labels=["state"])
        states = {"free": stats.blocks_free, "cached": stats.blocks_cached, "used": stats.blocks_used}
        for state, count in states.items():
            blocks.add_metric([state], count)
        yield blocks
        total = sum(states.values())
        yield _gauge("kv_cache_usage_ratio", "Share of the blocks in use.", stats.blocks_used / total if total else 0)
        if self.ready is not None:
            labels = {"block_size": self.ready.block_size, "blocks": self.ready.total_blocks}
            info = GaugeMetricFamily("headrace_kv_cache_info", "How the KV cache is cut.", labels=list(labels))
            info.add_metric([str(value) for value in labels.values()], 1)
            yield info


class Metrics(Collector):
    """One per server. Other rooms say what happened; nobody else names a series."""

    def __init__(self, *, vllm_names: bool = True) -> None:
        self._vllm_names = vllm_names
        self._registry = registry = CollectorRegistry()
        self._engine = EngineState()
        registry.register(self._engine)
        self.accepted = Counter("headrace_requests_accepted", "Requests taken on.", registry=registry)
        self.finished = Counter(
            "headrace_requests_finished",
            "Accepted requests by how they ended; add up to the accepted ones when idle.",
            ["reason"],
            registry=registry,
        )
        for reason in END_REASONS:
            self.finished.labels(reason)  # present from the start, so that rates have a zero to rise from
        self._rejections = Counter(
            "headrace_requests_rejected", "Requests answered with an error.", ["reason"], registry=registry
        )
        self._disconnects = Counter("headrace_client_disconnects", "Clients that left too early.", registry=registry)
        self.key_requests = Counter(
            "headrace_key_requests", "Accepted requests that have ended, by key.", ["key"], registry=registry
        )
        self.key_tokens = Counter(
            "headrace_key_tokens", "Tokens of their prompts and answers.", ["key"], registry=registry
        )
        self.prompt_tokens = Counter("headrace_prompt_tokens", "Of ended requests.", registry=registry)
        self.generation_tokens = Counter("headrace_generation_tokens", "As they come.", registry=registry)
        self._restarts = Counter("headrace_engine_restarts", "Engines replaced.", ["reason"], registry=registry)
        for cause in CAUSES:
            self._restarts.labels(cause)
        self._resumed = Counter(
            "headrace_requests_resumed", "Sequences that a new engine went on with.", registry=registry
        )
        self._unrecorded = Counter(
            "headrace_exchanges_unrecorded", "Exchanges that the file to record them did not take.", registry=registry
        )
        self._streams_resumed = Counter(
            "headrace_streams_resumed", "Readers that went on with a stream begun before.", registry=registry
        )
        self._streams_abandoned = Counter(
            "headrace_streams_abandoned", "Resumable streams whose reader did not come back in time.", registry=registry
        )
        self._declare_times(registry)
        self._declare_lengths(registry)

    def _declare_times(self, registry: CollectorRegistry) -> None:
        def seconds(name: str, what: str, buckets: tuple[float, ...] = WAITS) -> Histogram:
            return Histogram(f"headrace_{name}_seconds", what, registry=registry, buckets=buckets)

        self.time_to_first_token = seconds("time_to_first_token", "From the parsed request to its first piece.")
        self.inter_token_latency = seconds("inter_token_latency", "Between pieces of a choice.", GAPS)
        self.duration = seconds("request_duration", "From the parsed request to its end.")
        self._queue = seconds("request_queue", "From submission to the first step.")
        self._prefill = seconds("request_prefill", "From the first step to the first token.")
        self._decode = seconds("request_decode", "From the first token to the last.")
        self._step = seconds("step", "One engine step.", GAPS)
        self._loop_lag = seconds("event_loop_lag", "By how much the event loop wakes a sleeper too late.", GAPS)

    def _declare_lengths(self, registry: CollectorRegistry) -> None:
        def tokens(name: str, what: str, buckets: tuple[int, ...] = LENGTHS) -> Histogram:
            return Histogram(f"headrace_{name}_length_tokens", what, registry=registry, buckets=buckets)

        self.prompt_length = tokens("request_prompt", "Prompt of a request.")
        self.generation_length = tokens("request_generation", "Output of a request, over its choices.")
        self._step_length = tokens("step", "Computed in one step.", STEP_LENGTHS)

    def serving(self, model: str, ready: Ready | None) -> None:
        """What is served, under the name that clients use, and on what once that is known; may be said again."""
        self._engine.model, self._engine.ready = model, ready

    def step(self, stats: Stats) -> None:
        """The engine has made a step, or, without tokens, tells of cancels that left it none to make."""
        self._engine.stats = stats
        if stats.step_tokens:
            self._engine.last_step = time.monotonic()
            self._step.observe(stats.step_seconds)
            self._step_length.observe(stats.step_tokens)

    def replicas(self, series: Collector) -> None:
        """From here on, these are exposed, too."""
        self._registry.register(series)

    def census(self, stats: Stats) -> None:
        """What many engines come to together, as of now. Of their steps one by one nothing is told."""
        if stats != self._engine.stats:
            self._engine.stats, self._engine.last_step = stats, time.monotonic()

    def request_moved(self) -> None:
        """A sequence has lost its replica and goes on with another."""
        self._resumed.inc()

    def engine_restarted(self, cause: Cause, resumed: int) -> None:
        """The engine has ended, another takes its place and goes on with so many sequences."""
        self._restarts.labels(cause).inc()
        self._resumed.inc(resumed)

    def sequence_ended(self, stages: Stages) -> None:
        """A sequence has left the engine, whichever way."""
        self._queue.observe(stages.queue_s)
        if stages.prefill_s is not None:
            self._prefill.observe(stages.prefill_s)
        if stages.decode_s is not None:
            self._decode.observe(stages.decode_s)

    async def watch_loop(self) -> None:
        """Observes how late the running event loop is, until cancelled."""
        while True:
            due = time.monotonic() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            self._loop_lag.observe(max(0.0, time.monotonic() - due))

    def request_accepted(self, arrived: float, key: str | None = None) -> RequestMeter:
        """A request is in the engine's queue; `arrived` is `time.monotonic()` when its body was read, and `key` the
        name of the key that it came with.
        """
        self.accepted.inc()
        return RequestMeter(self, arrived, key)

    def rejected(self, reason: str) -> None:
        """A request was answered with an error; `reason` is one of the codes in `errors.py` or `refusals.py`."""
        self._rejections.labels(reason).inc()

    def client_left(self) -> None:
        """A client has gone before its answer was complete."""
        self._disconnects.inc()

    def exchange_lost(self) -> None:
        """An exchange was to be recorded and could not be."""
        self._unrecorded.inc()

    def stream_resumed(self) -> None:
        """A reader has come back to a stream, or another has taken it over."""
        self._streams_resumed.inc()

    def stream_abandoned(self) -> None:
        """A stream was given up before its end, because it had been without a reader for too long."""
        self._streams_abandoned.inc()

    def render(self) -> bytes:
        """The text exposition format, to be sent as `CONTENT_TYPE`."""
        return generate_latest(self)

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            # When a series was created says nothing here: all are as old as the process.
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
            if self._vllm_names and self._engine.model and metric.name in VLLM_NAMES:
                yield self._as_vllm(metric)

    def _as_vllm(self, metric: Metric) -> Metric:
        """The same samples under vLLM's name and labels."""
        name = VLLM_NAMES[metric.name]
        alias = Metric(name, metric.documentation, metric.type)
        for sample in metric.samples:
            labels = {VLLM_LABELS.get(key, key): VLLM_VALUES.get(value, value) for key, value in sample.labels.items()}
            labels |= {"model_name": self._engine.model, "engine": "0"}
            alias.add_sample(name + sample.name.removeprefix(metric.name), labels, sample.value)
        return alias


NOTHING = Stats(
    running=0,
    waiting=0,
    blocks_free=0,
    blocks_cached=0,
    blocks_used=0,
    preemptions=0,
    prefix_queries=0,
    prefix_hits=0,
    drafts_proposed=0,
    drafts_accepted=0,
    step_tokens=0,
    step_seconds=0.0,
    invariant_violations=0,
)


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"headrace_{name}", what, value=value)


def _counter(name: str, what: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"headrace_{name}", what, value=value)
