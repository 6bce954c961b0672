"""How throughput and time to first token look against the load: one small SVG, readable on light and dark pages."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from server.bench.compare import Row, compare
from server.bench.load import ClosedLoop
from server.bench.session import Session

WIDTH, HEIGHT = 760, 330
PANEL_WIDTH, PANEL_HEIGHT, TOP, LEFTS = 300, 200, 74, (58, 440)
LEGEND_LIMIT = 54  # characters that fit above a panel
STYLE = """
  .page { fill: #ffffff; }
  text { font: 12px system-ui, sans-serif; fill: #4a4f57; }
  .title { font-weight: 600; font-size: 13px; fill: #1f2328; }
  .grid { stroke: #dde1e6; }
  .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
  .rare { stroke-dasharray: 5 4; }
  .A { stroke: #0a70c4; } circle.A { fill: #0a70c4; }
  .B { stroke: #c4570a; } circle.B { fill: #c4570a; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; }
    text { fill: #b1b8c1; } .title { fill: #f0f3f6; } .grid { stroke: #30363d; }
    .A { stroke: #58a6ff; } circle.A { fill: #58a6ff; }
    .B { stroke: #f0883e; } circle.B { fill: #f0883e; }
  }
"""


@dataclass(frozen=True, slots=True)
class Curve:
    """Medians of one quantity of one server over the loads."""

    server: str
    points: list[tuple[float, float]]
    is_rare: bool = False  # a high percentile, drawn dashed


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. Load goes in powers of two where loads are concurrencies, values upwards from zero."""

    left: int
    title: str
    x_title: str
    levels: list[float]
    is_log: bool
    curves: list[Curve]

    @property
    def top_value(self) -> float:
        return ticks(max((y for curve in self.curves for _, y in curve.points), default=1.0))[-1]

    def x(self, level: float) -> float:
        low, high = self._scaled(min(self.levels)), self._scaled(max(self.levels))
        share = 0.5 if high == low else (self._scaled(level) - low) / (high - low)
        return self.left + 12 + share * (PANEL_WIDTH - 24)

    def y(self, value: float) -> float:
        return TOP + PANEL_HEIGHT * (1 - value / self.top_value)

    def _scaled(self, level: float) -> float:
        return math.log2(level) if self.is_log else level

    def svg(self) -> list[str]:
        middle, bottom = self.left + PANEL_WIDTH / 2, TOP + PANEL_HEIGHT
        parts = [_text(self.left, TOP - 16, self.title, "title")]
        for value in ticks(self.top_value):
            y = self.y(value)
            parts.append(
                f'<line class="grid" x1="{self.left}" x2="{self.left + PANEL_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            parts.append(_text(self.left - 8, y + 4, f"{value:,.10g}", anchor="end"))
        parts += [_text(self.x(level), bottom + 20, f"{level:g}", anchor="middle") for level in self.levels]
        parts.append(_text(middle, bottom + 42, self.x_title, anchor="middle"))
        return parts + [part for curve in self.curves for part in self._curve(curve)]

    def _curve(self, curve: Curve) -> list[str]:
        places = [(self.x(level), self.y(value)) for level, value in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        rare = " rare" if curve.is_rare else ""
        dots = [f'<circle class="{curve.server}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
        return [f'<polyline class="curve {curve.server}{rare}" points="{path}"/>', *dots]


def plot(session: Session) -> str:
    """The SVG document."""
    rows = compare(session.runs)
    is_closed = isinstance(session.runs[0].load, ClosedLoop)
    x_title = "requests at once" if is_closed else "requests per second offered"
    levels = sorted({row.load.level for row in rows})
    panels = [
        Panel(LEFTS[0], "Output tokens per second", x_title, levels, is_closed, _curves(rows, "output tok/s")),
        Panel(
            LEFTS[1],
            "Time to first token, ms (dashed: p95)",
            x_title,
            levels,
            is_closed,
            [*_curves(rows, "TTFT p50, ms"), *_curves(rows, "TTFT p95, ms", is_rare=True)],
        ),
    ]
    page = f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'  # readable on any page around it
    body = [page, *_legend(session), *(part for panel in panels for part in panel.svg())]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    title = "<title>Throughput and time to first token against the load</title>"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            title,
            f"<style>{STYLE}</style>",
            *body,
            "</svg>\n",
        ]
    )


def _curves(rows: Sequence[Row], name: str, is_rare: bool = False) -> list[Curve]:
    servers = list(dict.fromkeys(server for row in rows for server in row.values))
    curves = []
    for server in servers:
        points = [
            (row.load.level, statistics.median(row.values[server]))
            for row in rows
            if row.name == name and row.values[server]
        ]
        curves.append(Curve(server, sorted(points), is_rare))
    return curves


def _legend(session: Session) -> list[str]:
    parts = []
    for contender, left in zip(session.contenders, LEFTS, strict=False):
        parts.append(f'<circle class="{contender.name}" cx="{left + 5}" cy="22" r="5"/>')
        parts.append(_text(left + 16, 26, f"{contender.client.address.url}  {contender.target.model}"[:LEGEND_LIMIT]))
    return parts


def ticks(top: float) -> list[float]:
    """Four to ten round numbers from 0 to at least `top`."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(top))
    step = next(size * power for size in (0.2, 0.25, 0.5, 1, 2) if top / (size * power) <= 5)
    return [round(step * count, 12) for count in range(math.ceil(top / step - 1e-9) + 1)]


def _text(x: float, y: float, content: str, name: str = "", anchor: str = "start") -> str:
    kind = f' class="{name}"' if name else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
