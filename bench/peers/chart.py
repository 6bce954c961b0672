"""How the comparison looks: a panel of bars for every figure, as one small SVG for light and dark pages."""

from html import escape

from bench.peers.contestants import LLAMA_CPP, TRANSFORMERS
from bench.peers.results import FIGURES, Figure, Results
from server.bench.report import number

COLUMNS = 4
WIDTH, NAMES_WIDTH, PANEL_WIDTH = 860, 176, 170
BAR_WIDTH, BAR_HEIGHT, PITCH = 112, 13, 20  # PITCH: from one bar to the next
TOP, TITLE_HEIGHT, GAP = 14, 24, 22
STYLE = """
  .page { fill: #ffffff; }
  text { font: 12px system-ui, sans-serif; fill: #4a4f57; }
  .title { font-weight: 600; fill: #1f2328; }
  .headrace { fill: #0a70c4; } .llama { fill: #c4570a; } .other { fill: #7d8590; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; }
    text { fill: #b1b8c1; } .title { fill: #f0f3f6; }
    .headrace { fill: #58a6ff; } .llama { fill: #f0883e; } .other { fill: #8b949e; }
  }
"""


def chart(results: Results) -> str:
    """The SVG document."""
    names = results.contestants
    row_height = TITLE_HEIGHT + PITCH * len(names) + GAP
    rows = [FIGURES[first : first + COLUMNS] for first in range(0, len(FIGURES), COLUMNS)]
    height = TOP + row_height * len(rows)
    body = [f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>']
    for place, figures in enumerate(rows):
        top = TOP + place * row_height
        body += [_text(12, _base(top, line), name) for line, name in enumerate(names)]
        for column, figure in enumerate(figures):
            body += _panel(results, figure, NAMES_WIDTH + column * PANEL_WIDTH, top)
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', "<title>Headrace beside its peers</title>"]
    return "\n".join([*head, f"<style>{STYLE}</style>", *body, "</svg>\n"])


def _panel(results: Results, figure: Figure, left: int, top: int) -> list[str]:
    medians = {name: results.median(figure, name) for name in results.contestants}
    longest = max((value for value in medians.values() if value), default=1.0)
    parts = [_text(left, top + 12, figure.title + (" ↓" if figure.is_cost else ""), "title")]
    for place, (name, value) in enumerate(medians.items()):
        width = BAR_WIDTH * (value or 0) / longest
        y = _base(top, place) - BAR_HEIGHT + 2
        parts.append(f'<rect class="{_kind(name)}" x="{left}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}"/>')
        parts.append(_text(left + width + 5, _base(top, place), number(value)))
    return parts


def _base(top: int, place: int) -> int:
    """The y on which the text beside a bar stands."""
    return top + TITLE_HEIGHT + PITCH * place + BAR_HEIGHT


def _kind(name: str) -> str:
    if name in LLAMA_CPP.values():
        return "llama"
    return "other" if name == TRANSFORMERS else "headrace"


def _text(x: float, y: float, content: str, name: str = "") -> str:
    kind = f' class="{name}"' if name else ""
    return f'<text{kind} x="{x:.1f}" y="{y}">{escape(content)}</text>'
