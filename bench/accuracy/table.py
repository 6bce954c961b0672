"""How the figures are shown: one row a contestant, and whether what is required of ours holds."""

from dataclasses import dataclass

from bench.accuracy.tally import Tally

MAX_PERPLEXITY_LOSS = 1e-4  # relative, of the default activations
MAX_KL = 5e-5

REFERENCE = "fp32, plain torch"
DEFAULT = "Headrace, default"
FAST = "Headrace, int8 activations"
HALF = "Headrace, float16 KV cache"
SMALL = "Headrace, int8 KV cache"
PEER = "llama.cpp"


@dataclass(frozen=True, slots=True)
class Judged:
    """All who were given one file's weights."""

    form: str  # of the file: Q4_1, ...
    rows: dict[str, Tally]  # contestant -> its sums

    def loss(self, name: str) -> float:
        """By how much the perplexity is above that of fp32 on the same weights, relative."""
        return self.rows[name].perplexity / self.rows[REFERENCE].perplexity - 1


def table(judged: list[Judged]) -> str:
    """Markdown."""
    rows = [["weights", "computed by", "perplexity", "above fp32", "KL to fp32", "top-1 agreement", "predictions"]]
    for group in judged:
        rows += [[group.form, name, *_cells(group, name)] for name in group.rows]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|---|---|---|---|---|---|", *lines[1:]])


def _cells(group: Judged, name: str) -> list[str]:
    tally = group.rows[name]
    apart = [f"{group.loss(name):+.3%}", f"{tally.kl:.3g}", f"{tally.agreement:.2%}"]
    return [f"{tally.perplexity:.4f}", *(["", "", ""] if name == REFERENCE else apart), f"{tally.tokens:,}"]


def verdicts(group: Judged) -> str:
    """What is required on the default model's own weights, and whether it is so. Markdown."""
    loss, kl = abs(group.loss(DEFAULT)), group.rows[DEFAULT].kl
    required = {
        f"{DEFAULT}: perplexity within {MAX_PERPLEXITY_LOSS:.2%} of fp32": loss <= MAX_PERPLEXITY_LOSS,
        f"{DEFAULT}: KL at most {MAX_KL:g}": kl <= MAX_KL,
        f"{FAST}: KL no larger than llama.cpp's": group.rows[FAST].kl <= group.rows[PEER].kl,
    }
    return "\n".join(f"- {what}: {'yes' if holds else 'no'}" for what, holds in required.items())
