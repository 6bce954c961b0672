"""How much accuracy activations of few bits cost, ours and llama.cpp's: perplexity, KL and agreement against fp32.

python -P -m bench.accuracy [--tokens 5000] [--weights Q4_1]
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

from bench.accuracy.contestants import Contestant, Peer, compile_peer, fast, plain_torch
from bench.accuracy.table import BF16, DEFAULT, FAST, PEER, REFERENCE, Judged, table, verdicts
from bench.accuracy.tally import Prediction, Tally
from bench.accuracy.text import WINDOW, Text
from bench.peers.llama_cpp import OTHER_FORMS, PACKAGE, SAME_FORM, VERSION, LlamaCpp, build
from model.checkpoints.sources import DEFAULT_MODEL, locate

TOKENS = 51_000
DOCUMENT = Path(__file__).parents[1] / "accuracy.md"


def main() -> None:
    options = parser().parse_args()
    text = Text.of_this_python()
    model = locate(DEFAULT_MODEL, lambda stage, done, total: None)
    try:
        windows = text.windows(model, options.tokens)
    except ValueError as error:
        raise SystemExit(f"bench.accuracy: {error}") from error
    llama_cpp = build()
    program = compile_peer(llama_cpp)
    judged = [
        Judged(form, judge(path, form, program, windows))
        for form, path in files(llama_cpp, model).items()
        if form in options.weights
    ]
    print(table(judged))
    if len(windows) == -(-TOKENS // (WINDOW - 1)) and len(judged) == len(OTHER_FORMS) + 1:
        DOCUMENT.write_text(document(text, len(windows), judged), encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -P -m bench.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole = f"{TOKENS}; only a whole run writes {DOCUMENT.name}"
    parser.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help=f"to be predicted (default: {whole})")
    forms = [SAME_FORM, *OTHER_FORMS]
    parser.add_argument("--weights", nargs="+", choices=forms, default=forms, help="formats to judge (default: all)")
    return parser


def files(llama_cpp: LlamaCpp, model: Path) -> dict[str, Path]:
    return {SAME_FORM: model} | {form: llama_cpp.quantized(model, form) for form in OTHER_FORMS}


def judge(model: Path, form: str, program: Path, windows: list[list[int]]) -> dict[str, Tally]:
    """Everyone on the same weights, each against fp32 on what these weights are when dequantised."""
    with ExitStack() as stack:
        contestants: dict[str, Contestant] = {
            REFERENCE: plain_torch(model, torch.float32),
            DEFAULT: fast(model, "int16"),
            FAST: fast(model, "int8"),
            PEER: stack.enter_context(Peer.running(program, model)),
        }
        if form == SAME_FORM:  # for orientation once is enough: it is slow
            contestants[BF16] = plain_torch(model, torch.bfloat16)
        tallies = {name: Tally() for name in contestants}
        for window in tqdm(windows, desc=form, unit="window", file=sys.stderr):
            targets_T = torch.tensor(window[1:])
            reference = Prediction.of(contestants[REFERENCE].logits(window)[:-1])
            for name, contestant in contestants.items():
                ours = reference if name == REFERENCE else Prediction.of(contestant.logits(window)[:-1])
                tallies[name].add(ours, reference, targets_T)
    return tallies


def document(text: Text, num_windows: int, judged: list[Judged]) -> str:
    return f"""\
# What activations of few bits cost

Written by `make bench-accuracy`; the figures do not depend on how busy the machine is.

- **Text**: {text.name}
  (SHA-256 `{text.sha256}`),
  its first {num_windows * WINDOW:,} tokens in windows of {WINDOW}. A window is read from position 0, always with the
  true tokens before each one, and all but its first are predicted: {num_windows * (WINDOW - 1):,} predictions.
- **Reference**: fp32 in plain torch (`model/kernels/reference.py`, which the tests hold to transformers) on the
  dequantised weights of the same file, so that what is lost is lost by the activations.
- **llama.cpp** ({PACKAGE} {VERSION}) is asked through its library for the same tokens, with flash attention and
  otherwise by default. Q4_0 and Q8_0 are its own tool's requantisations of the default model.

{table(judged)}

Required of {SAME_FORM}:

{verdicts(judged[0])}
"""


if __name__ == "__main__":
    main()
