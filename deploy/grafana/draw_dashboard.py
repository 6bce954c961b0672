"""What the dashboard's queries answer, drawn without Grafana: `python deploy/grafana/draw_dashboard.py --help`."""

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from copy import copy
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter, ScalarFormatter, StrMethodFormatter
from write_dashboard import COLUMNS, dashboard

FORMATTERS = {
    "none": ScalarFormatter(),
    "percentunit": PercentFormatter(1),
    "s": EngFormatter("s"),
    "reqps": StrMethodFormatter("{x:g} req/s"),
    "cps": EngFormatter("tok/s"),
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text as text: a third of the size, and it can be searched
    "font.size": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1,
}
POINTS = 120
Answer = list[tuple[str, list[float], list[float]]]  # legend, minutes before the end, values


def ask(prometheus: str, query: str, legend: str, minutes: float) -> Answer:
    """The series of a query over the last minutes. Raises `urllib.error.URLError` where nobody answers."""
    end = time.time()
    step = 60 * minutes / POINTS
    span = {"query": query, "start": end - 60 * minutes, "end": end, "step": step}
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(span)}", timeout=30) as body:
        found = json.load(body)["data"]["result"]
    return [(named(legend, series["metric"]), *line(series["values"], end)) for series in found]


def named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda name: labels.get(name[1], ""), legend)


def line(values: list[tuple[float, str]], end: float) -> tuple[list[float], list[float]]:
    return [(at - end) / 60 for at, _ in values], [float(value) for _, value in values]


def draw(prometheus: str, minutes: float, instance: str) -> Figure:
    """The panels in their places, each with its answers."""
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    across = COLUMNS // panels[0]["gridPos"]["w"]
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4 * across, 2.2 * down), layout="constrained")
    places = [*figure.subplots(down, across, squeeze=False).flat]
    for panel, axes in zip(panels, places, strict=False):
        draw_panel(axes, panel, prometheus, minutes, instance)
    for axes in places[len(panels) :]:
        axes.remove()
    figure.supxlabel("minutes")
    return figure


def draw_panel(axes: Axes, panel: dict[str, Any], prometheus: str, minutes: float, instance: str) -> None:
    pace = f"{max(60, round(60 * minutes / POINTS))}s"
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", pace).replace("$instance", instance)
        for legend, at, values in ask(prometheus, query, target["legendFormat"], minutes):
            axes.plot(at, values, label=legend)
    axes.yaxis.set_major_formatter(copy(FORMATTERS[panel["fieldConfig"]["defaults"]["unit"]]))
    axes.set(title=panel["title"], xlim=(-minutes, 0), ylim=(0, None))
    if axes.lines:
        axes.legend(loc="upper left", frameon=False, fontsize=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prometheus", help="where Prometheus is, such as http://127.0.0.1:9090")
    parser.add_argument("picture", type=Path, help="the file to write: .svg, .png or .pdf")
    parser.add_argument("--minutes", type=float, default=60, help="how far back (60)")
    parser.add_argument("--instance", default=".*", help="a regular expression of instances (all)")
    given = parser.parse_args()
    with matplotlib.rc_context(STYLE):
        draw(given.prometheus.rstrip("/"), given.minutes, given.instance).savefig(given.picture)


if __name__ == "__main__":
    main()
