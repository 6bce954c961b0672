"""How much accuracy activations and a cache of few bits cost, ours and llama.cpp's: perplexity and KL against fp32.

python -P -m bench.accuracy [--tokens 5000] [--weights Q4_1]
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from bench.accuracy.contestants import Contestant, Peer, compile_peer, reference, served
from bench.accuracy.table import DEFAULT, FAST, HALF, PEER, REFERENCE, SMALL, Judged, table, verdicts
from bench.accuracy.tally import Prediction, Tally
from bench.accuracy.text import WINDOW, Text
from bench.peers.llama_cpp import OTHER_FORMS, PACKAGE, SAME_FORM, VERSION, LlamaCpp, build
from model.checkpoints.sources import DEFAULT_MODEL, locate

FORMS = [SAME_FORM, *OTHER_FORMS]
TOKENS = 51_000
OTHER_SHARE = 5  # of the text, for the files that are there for orientation
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
    judged = []
    for form, path in files(llama_cpp, model).items():
        if form in options.weights:
            part = windows if form == SAME_FORM else windows[: -(-len(windows) // OTHER_SHARE)]
            judged.append(Judged(form, judge(path, form, program, part)))
            print(table(judged[-1:]), flush=True)
    if options.tokens == TOKENS and options.weights == FORMS:
        DOCUMENT.write_text(document(text, judged), encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -P -m bench.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole = f"{TOKENS}; only a whole run writes {DOCUMENT.name}"
    parser.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help=f"to be predicted (default: {whole})")
    forms_help = "formats to judge (default: all)"
    parser.add_argument("--weights", nargs="+", choices=FORMS, default=FORMS, help=forms_help)
    return parser


def files(llama_cpp: LlamaCpp, model: Path) -> dict[str, Path]:
    return {SAME_FORM: model} | {form: llama_cpp.quantized(model, form) for form in OTHER_FORMS}


def judge(model: Path, form: str, program: Path, windows: list[list[int]]) -> dict[str, Tally]:
    """Everyone on the same weights, each against fp32 on what these weights are when dequantised."""
    with Peer.running(program, model) as peer:
        contestants: dict[str, Contestant] = {
            REFERENCE: reference(model),
            DEFAULT: served(model),
            FAST: served(model, activations="int8"),
            HALF: served(model, kv_dtype="float16"),
            SMALL: served(model, kv_dtype="int8"),
            PEER: peer,
        }
        tallies = {name: Tally() for name in contestants}
        for window in tqdm(windows, desc=form, unit="window", file=sys.stderr):
            targets_T = torch.tensor(window[1:])
            truth = Prediction.of(contestants[REFERENCE].logits(window)[:-1])
            for name, contestant in contestants.items():
                ours = truth if name == REFERENCE else Prediction.of(contestant.logits(window)[:-1])
                tallies[name].add(ours, truth, targets_T)
    return tallies


def document(text: Text, judged: list[Judged]) -> str:
    predictions = judged[0].rows[REFERENCE].tokens
    num_windows = predictions // (WINDOW - 1)
    return f"""\
# What activations and a cache of few bits cost

Written by `make bench-accuracy`; the figures do not depend on how busy the machine is.

- **Text**: {text.name}
  (SHA-256 `{text.sha256}`),
  its first {num_windows * WINDOW:,} tokens in windows of {WINDOW}. A window is read from position 0, always with the
  true tokens before each one, and all but its first are predicted: {predictions:,} predictions.
- **Reference**: fp32 in plain torch (`model/kernels/reference.py`, which the tests hold to transformers) on the
  dequantised weights of the same file and with keys and values in fp32, so that all that is seen is the loss by
  activations and cache.
- **llama.cpp** ({PACKAGE} {VERSION}) is asked through its library for the same tokens, with flash attention and
  otherwise by default, which holds keys and values in float16. Q4_0 and Q8_0 are its own tool's requantisations of
  the default model, and are judged on the first fifth of the text.

{table(judged)}

Required of {SAME_FORM}:

{verdicts(judged[0])}
"""


if __name__ == "__main__":
    main()
