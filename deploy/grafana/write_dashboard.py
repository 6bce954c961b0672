"""What the dashboard shows, as a table of panels: `python deploy/grafana/write_dashboard.py` writes its JSON."""

import json
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parent / "dashboards" / "headrace.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = 'instance=~"$instance"'
OVER = "[$__rate_interval]"
QUANTILES = (0.5, 0.9, 0.99)
COLUMNS, HEIGHT = 24, 8


def gauge(name: str, by: str = "") -> str:
    return f"sum{_by(by)} (headrace_{name}{{{HERE}}})"


def per_second(name: str, by: str = "") -> str:
    return f"sum{_by(by)} (rate(headrace_{name}_total{{{HERE}}}{OVER}))"


def growth(name: str, by: str = "") -> str:
    return f"sum{_by(by)} (increase(headrace_{name}_total{{{HERE}}}{OVER}))"


def quantiles(name: str) -> dict[str, str]:
    buckets = f"sum by (le) (rate(headrace_{name}_bucket{{{HERE}}}{OVER}))"
    return {f"p{round(100 * share)}": f"histogram_quantile({share}, {buckets})" for share in QUANTILES}


def mean(name: str) -> str:
    sums, counts = (f"sum(rate(headrace_{name}_{part}{{{HERE}}}{OVER}))" for part in ("sum", "count"))
    return f"{sums} / {counts}"


def _by(label: str) -> str:
    return f" by ({label})" if label else ""


# row -> panel -> (unit, {legend: query}); a legend in double braces is the label that the query keeps
ROWS: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "What clients feel": {
        "Time to first token": ("s", quantiles("time_to_first_token_seconds")),
        "Between tokens": ("s", quantiles("inter_token_latency_seconds")),
        "Whole request": ("s", quantiles("request_duration_seconds")),
        "Accepted requests": ("reqps", {"accepted": per_second("requests_accepted")}),
        "Ends by reason": ("reqps", {"{{reason}}": per_second("requests_finished", "reason")}),
        "Rejections by reason": ("reqps", {"{{reason}}": per_second("requests_rejected", "reason")}),
    },
    "What it does": {
        "Tokens": ("cps", {"in": per_second("prompt_tokens"), "out": per_second("generation_tokens")}),
        "Sequences": ("none", {"running": gauge("requests_running"), "waiting": gauge("requests_waiting")}),
        "KV blocks by state": ("none", {"{{state}}": gauge("kv_blocks", "state")}),
        "Share of prompt tokens found in the prefix cache": (
            "percentunit",
            {"found": f"{per_second('prefix_cache_hit_tokens')} / {per_second('prefix_cache_query_tokens')}"},
        ),
        "Share of drafted tokens that came true": (
            "percentunit",
            {"true": f"{per_second('draft_tokens_accepted')} / {per_second('draft_tokens')}"},
        ),
        "Preemptions": ("none", {"preemptions": growth("preemptions")}),
    },
    "Where time goes": {
        "Waiting for the first step": ("s", quantiles("request_queue_seconds")),
        "From the first step to the first token": ("s", quantiles("request_prefill_seconds")),
        "From the first token to the last": ("s", quantiles("request_decode_seconds")),
        "Engine step": ("s", quantiles("step_seconds")),
        "Tokens in a step": ("none", {"mean": mean("step_length_tokens"), **quantiles("step_length_tokens")}),
        "Lag of the event loop": ("s", quantiles("event_loop_lag_seconds")),
    },
    "What is asked": {
        "Prompt length": (
            "none",
            {"mean": mean("request_prompt_length_tokens")} | quantiles("request_prompt_length_tokens"),
        ),
        "Output length": (
            "none",
            {"mean": mean("request_generation_length_tokens")} | quantiles("request_generation_length_tokens"),
        ),
        "Requests by key": ("reqps", {"{{key}}": per_second("key_requests", "key")}),
        "Tokens by key": ("cps", {"{{key}}": per_second("key_tokens", "key")}),
    },
    "What went wrong": {
        "Engines replaced": ("none", {"{{reason}}": growth("engine_restarts", "reason")}),
        "Sequences and streams that went on": (
            "none",
            {
                "sequences on a new engine": growth("requests_resumed"),
                "streams on a new connection": growth("streams_resumed"),
                "streams given up": growth("streams_abandoned"),
            },
        ),
        "Clients that left too early": ("none", {"left": growth("client_disconnects")}),
        "Since the last step": ("s", {"{{instance}}": f"headrace_engine_last_step_age_seconds{{{HERE}}}"}),
        "Blocks that do not add up, exchanges not recorded": (
            "none",
            {"violations": growth("kv_invariant_violations"), "unrecorded": growth("exchanges_unrecorded")},
        ),
        "What runs": ("none", {"{{version}}, torch {{torch}}": gauge("build_info", "version, torch")}),
    },
}


def dashboard() -> dict[str, Any]:
    return {
        "uid": "headrace",
        "title": "Headrace",
        "tags": ["headrace"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource_variable(), _instance_variable()]},
        "panels": _panels(),
    }


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _instance_variable() -> dict[str, Any]:
    return {
        "name": "instance",
        "label": "Instance",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": "label_values(headrace_build_info, instance)", "refId": "instances"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> list[dict[str, Any]]:
    """Three side by side, under a heading for each row."""
    panels: list[dict[str, Any]] = []
    width, y = COLUMNS // 3, 0
    for heading, row in ROWS.items():
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": heading, "gridPos": place, "panels": []})
        y += 1
        for number, (title, (unit, queries)) in enumerate(row.items()):
            place = {"x": number % 3 * width, "y": y + number // 3 * HEIGHT, "w": width, "h": HEIGHT}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(title, unit, queries)})
        y += -(-len(row) // 3) * HEIGHT
    return panels


def _panel(title: str, unit: str, queries: dict[str, str]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + place), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
        for place, (legend, query) in enumerate(queries.items())
    ]
    defaults = {"unit": unit, "min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}
    return {
        "type": "timeseries",
        "title": title,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text())
