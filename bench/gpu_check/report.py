"""How the report reads: Markdown that can be pasted into an issue, verdicts first."""

from collections.abc import Mapping, Sequence

from bench.gpu_check.section import Options, Outcome

DRY_RUN = "**A dry run on a CPU: it shows that these checks run, and says nothing about any GPU.**"


def report(options: Options, outcomes: Mapping[str, Outcome]) -> str:
    """Of all sections, in their order."""
    verdicts = [["section", "outcome"], *([name, str(outcome)] for name, outcome in outcomes.items())]
    parts = [f"# Headrace's GPU check: `{options.model}` on {options.device}", *([DRY_RUN] * (options.device == "cpu"))]
    parts.append(table(verdicts))
    for name, outcome in outcomes.items():
        if outcome.body or outcome.last_words:
            parts += [f"## {name}", outcome.body, _details(outcome.last_words)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head; what follows the first column is to the right."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]])


def _details(last_words: str) -> str:
    if not last_words:
        return ""
    return f"<details><summary>its last words</summary>\n\n```\n{last_words}\n```\n\n</details>"
