"""How the predictions look: against the number of replicas and against the load, as one small SVG."""

from collections.abc import Callable, Sequence
from html import escape

from bench.simulation.predict import COMPARED, Prediction
from server.bench.plot import STYLE, Curve, Panel

NAMES = dict(zip(COMPARED, "ADBC", strict=True))  # as the style calls their colours
MORE_STYLE = """
  .C { stroke: #6e7781; } circle.C { fill: #6e7781; }
  .D { stroke: #2f9e44; } circle.D { fill: #2f9e44; }
"""
WIDTH, ROW_HEIGHT, ROWS, LEFTS = 760, 290, 2, (58, 440)
LEGEND_STEP = 180

Value = Callable[[Prediction], float]


def ttft_p50(prediction: Prediction) -> float:
    return prediction.figures.ttft_p50


def ttft_p90(prediction: Prediction) -> float:
    return prediction.figures.ttft_p90


def cached_percent(prediction: Prediction) -> float:
    return 100 * prediction.figures.cached_share


def goodput(prediction: Prediction) -> float:
    return prediction.figures.goodput / prediction.scenario.replicas


def chart(by_replicas: Sequence[Prediction], by_rate: Sequence[Prediction]) -> str:
    """The SVG document."""
    height = ROW_HEIGHT * ROWS + 40
    body = [f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>', *_legend()]
    for row, panels in enumerate([_replica_panels(by_replicas), _rate_panels(by_rate)]):
        body += [f'<g transform="translate(0 {row * ROW_HEIGHT})">', *(part for one in panels for part in one), "</g>"]
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', "<title>What many replicas would do</title>"]
    return "\n".join([*head, f"<style>{STYLE}{MORE_STYLE}</style>", *body, "</svg>\n"])


def _replica_panels(predictions: Sequence[Prediction]) -> list[list[str]]:
    def panel(left: int, title: str, curves: list[Curve]) -> list[str]:
        levels = sorted({float(prediction.scenario.replicas) for prediction in predictions})
        return Panel(left, title, "replicas", levels, True, curves).svg()

    def curves(value: Value, is_rare: bool = False) -> list[Curve]:
        return _curves(predictions, lambda prediction: prediction.scenario.replicas, value, is_rare)

    times = [*curves(ttft_p50), *curves(ttft_p90, is_rare=True)]
    return [
        panel(LEFTS[0], "Time to first token, s (dashed: p90)", times),
        panel(LEFTS[1], "Prompt tokens from the prefix cache, %", curves(cached_percent)),
    ]


def _rate_panels(predictions: Sequence[Prediction]) -> list[list[str]]:
    def panel(left: int, title: str, curves: list[Curve]) -> list[str]:
        levels = sorted({prediction.scenario.rate for prediction in predictions})
        replicas = predictions[0].scenario.replicas
        return Panel(left, title, f"requests per second and replica, {replicas} replicas", levels, False, curves).svg()

    def curves(value: Value, is_rare: bool = False) -> list[Curve]:
        return _curves(predictions, lambda prediction: prediction.scenario.rate, value, is_rare)

    times = [*curves(ttft_p50), *curves(ttft_p90, is_rare=True)]
    return [
        panel(LEFTS[0], "Time to first token, s (dashed: p90)", times),
        panel(LEFTS[1], "Good requests per second and replica", curves(goodput)),
    ]


def _curves(predictions: Sequence[Prediction], level: Value, value: Value, is_rare: bool) -> list[Curve]:
    return [
        Curve(
            name,
            sorted((level(one), value(one)) for one in predictions if one.scenario.router == router),
            is_rare,
        )
        for router, name in NAMES.items()
    ]


def _legend() -> list[str]:
    parts = []
    for place, (router, name) in enumerate(NAMES.items()):
        x = LEFTS[0] + place * LEGEND_STEP
        parts.append(
            f'<circle class="{name}" cx="{x + 5}" cy="22" r="5"/><text x="{x + 16}" y="26">{escape(router)}</text>'
        )
    return parts
