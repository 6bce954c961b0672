"""lm-eval's local-completions with the server's tokenizer, unchanged, against a real server with the default model."""

import json
import os
import subprocess
from pathlib import Path

import gguf
import httpx
import pytest
import torch
from default_reference import reference_model
from installed import HERE, python_with

Loglikelihoods = list[list[float]]  # of each question, of each of its choices


@pytest.fixture(scope="module")
def told(base_url: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, list[dict]]:
    """The score, and what it was computed from, question by question."""
    folder = tmp_path_factory.mktemp("lm_eval")
    arguments = f"model={model},base_url={base_url}/completions,tokenizer_backend=remote"
    command = [python_with("lm_eval"), "-m", "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", arguments, "--batch_size", "8", "--tasks", "sums", "--include_path", "."]
    command += ["--output_path", folder / "told", "--log_samples"]
    environment = os.environ | {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ran = subprocess.run(command, cwd=HERE / "tasks", env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    (results,), (samples,) = (list((folder / "told").rglob(name)) for name in ("results_*.json", "samples_*.jsonl"))
    score: float = json.loads(results.read_text())["results"]["sums"]["acc,none"]
    return score, [json.loads(line) for line in samples.read_text().splitlines()]


@torch.inference_mode()
def by_transformers(default_model: Path, url: str, samples: list[dict]) -> Loglikelihoods:
    """All choices in one batch; what pads one is behind it, where nothing of it looks."""

    def ids(text: str) -> list[int]:
        tokens: list[int] = httpx.post(f"{url}/tokenize", json={"prompt": text}).json()["tokens"]
        return tokens

    asked = [[tuple(pair.values()) for pair in sample["arguments"].values()] for sample in samples]
    rows = [(ids(context), ids(context + choice)) for pairs in asked for context, choice in pairs]
    longest = max(len(whole) for _, whole in rows)
    batch = torch.tensor([whole + [0] * (longest - len(whole)) for _, whole in rows])
    logprobs = reference_model(gguf.GGUFReader(default_model))(batch).logits.log_softmax(-1)
    of_next = logprobs[:, :-1].gather(2, batch[:, 1:, None])[..., 0]
    sums = iter(float(row[len(c) - 1 : len(w) - 1].sum()) for row, (c, w) in zip(of_next, rows, strict=True))
    return [[next(sums) for _ in pairs] for pairs in asked]


@pytest.mark.proves("scores")
def test_the_score_is_that_of_transformers_on_the_same_weights(
    told: tuple[float, list[dict]], default_model: Path, base_url: str
) -> None:
    score, samples = told
    reference = by_transformers(default_model, base_url.removesuffix("/v1"), samples)
    chosen = [choices.index(max(choices)) for choices in reference]
    right = [choice == int(sample["target"]) for choice, sample in zip(chosen, samples, strict=True)]
    assert score == pytest.approx(sum(right) / len(right))
    assert 0.2 < score < 1
    for choices, sample in zip(reference, samples, strict=True):
        assert [float(said) for ((said, _),) in sample["resps"]] == pytest.approx(choices, abs=0.02)
