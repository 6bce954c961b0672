"""What the replicas say of themselves, as series: each by its name, and all of them as if they were one engine."""

from collections.abc import Iterator, Mapping

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.client import TOTALS
from server.engine.messages import Stats
from server.metrics import NOTHING
from server.scale_out.engine import Census
from server.scale_out.routing import WHYS

_GAUGES = ("running", "waiting", "blocks_free", "blocks_cached", "blocks_used")


class ReplicaSeries(Collector):
    """The series named `headrace_replica...`, which only a server with replicas has."""

    def __init__(self) -> None:
        self._census = Census({}, 0, {})
        self._gone = NOTHING  # what replicas that are no more have counted

    def take(self, census: Census) -> Stats:
        """The newest; what all replicas, past ones too, come to together. A counter never falls."""
        for name in self._census.stats.keys() - census.stats.keys():
            self._gone = _sum(self._gone, self._census.stats[name], TOTALS)
        self._census = census
        together = self._gone
        for stats in census.stats.values():
            together = _sum(together, stats, (*_GAUGES, *TOTALS))
        return together

    def collect(self) -> Iterator[Metric]:
        stats = self._census.stats
        yield GaugeMetricFamily("headrace_replicas", "Replicas that take requests.", value=self._census.replicas)
        yield _gauge("requests_running", "Sequences that it computes.", {name: s.running for name, s in stats.items()})
        yield _gauge("requests_waiting", "Sequences that wait there.", {name: s.waiting for name, s in stats.items()})
        yield _gauge("kv_cache_usage_ratio", "Share of its blocks in use.", {n: _usage(s) for n, s in stats.items()})
        yield _counter("prefix_cache_query_tokens", "Looked up there.", {n: s.prefix_queries for n, s in stats.items()})
        yield _counter("prefix_cache_hit_tokens", "Of those, found.", {n: s.prefix_hits for n, s in stats.items()})
        routed = CounterMetricFamily(
            "headrace_replica_requests_routed",
            "Sequences sent to it: it had the most of their prefix, or who had more was busier, or nobody had any.",
            labels=["replica", "why"],
        )
        for name in {name for name, _ in self._census.routed}:
            for why in WHYS:
                routed.add_metric([name, why], self._census.routed.get((name, why), 0))
        yield routed


def _sum(left: Stats, right: Stats, names: tuple[str, ...]) -> Stats:
    """The left with the right's added where named."""
    return msgspec.structs.replace(left, **{name: getattr(left, name) + getattr(right, name) for name in names})


def _usage(stats: Stats) -> float:
    total = stats.blocks_free + stats.blocks_cached + stats.blocks_used
    return stats.blocks_used / total if total else 0.0


def _gauge(name: str, what: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"headrace_replica_{name}", what, labels=["replica"])
    for replica, value in values.items():
        family.add_metric([replica], value)
    return family


def _counter(name: str, what: str, values: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"headrace_replica_{name}", what, labels=["replica"])
    for replica, value in values.items():
        family.add_metric([replica], value)
    return family
