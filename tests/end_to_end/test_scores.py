"""What a real server reads out of prompts, held against transformers on the same weights in fp32."""

import math
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from support import RunningServer, running_server, wait_until, write_tiny_model
from transformers import LlamaForCausalLM

from server.api.labels import asked, labels_of, probabilities

TOLERANCE = 2e-3  # of a log probability: the KV cache holds 16 bits
PROMPTS = [[(31 * place + 7 * step * step) % 256 for step in range(10 + 37 * place)] for place in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running_server("--model", str(folder), "--step-tokens", "64", "--check-invariants") as server:
        yield server


@pytest.fixture(scope="module")
def reference(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def post(server: RunningServer, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


@torch.inference_mode()
def logprobs(reference: LlamaForCausalLM, text: list[int]) -> torch.Tensor:
    """Row i is for token i + 1."""
    return torch.log_softmax(reference(torch.tensor([text])).logits[0, :-1], -1)


def test_prompt_logprobs_are_those_of_transformers(server: RunningServer, reference: LlamaForCausalLM) -> None:
    answer = post(server, "/v1/completions", prompt=PROMPTS, max_tokens=1, prompt_logprobs=3)
    for prompt, choice in zip(PROMPTS, answer["choices"], strict=True):
        nothing, *told = choice["prompt_logprobs"]
        assert nothing is None
        for token, row, entries in zip(prompt[1:], logprobs(reference, prompt), told, strict=True):
            for other, entry in entries.items():
                assert entry["logprob"] == pytest.approx(float(row[int(other)]), abs=TOLERANCE)
            assert [entry["rank"] for entry in entries.values()][:3] == [1, 2, 3]
            least, most = ((row > row[token] + margin).sum() + 1 for margin in (TOLERANCE, -TOLERANCE))
            assert least <= entries[str(token)]["rank"] <= most


def test_lm_evals_request_scores_continuations_as_transformers_does(
    server: RunningServer, reference: LlamaForCausalLM
) -> None:
    """The sum over the continuation, and whether each of its tokens was the likeliest, as lm-eval reads them."""
    greedy = post(server, "/v1/completions", prompt=PROMPTS[1], max_tokens=5, temperature=0, return_token_ids=True)
    texts = [*PROMPTS, [*PROMPTS[1], *greedy["choices"][0]["token_ids"]]]
    body = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    for text, choice in zip(texts, post(server, "/v1/completions", prompt=texts, **body)["choices"], strict=True):
        context = len(text) - 5
        told = choice["logprobs"]["token_logprobs"][context:-1]
        tops = choice["logprobs"]["top_logprobs"][context:-1]
        rows = logprobs(reference, text)[context - 1 :]
        assert sum(told) == pytest.approx(float(rows[range(5), text[context:]].sum()), abs=5 * TOLERANCE)
        is_greedy = all(figure == max(top.values()) for figure, top in zip(told, tops, strict=True))
        assert is_greedy == (rows.argmax(-1).tolist() == text[context:])
    assert is_greedy, "the last text ends as the model would have it"


@torch.inference_mode()
def test_embeddings_are_the_hidden_states_of_transformers(server: RunningServer, reference: LlamaForCausalLM) -> None:
    for pooling in ("mean", "last"):
        answer = post(server, "/v1/embeddings", input=PROMPTS, pooling=pooling)
        for prompt, told in zip(PROMPTS, answer["data"], strict=True):
            hidden = reference.model(torch.tensor([prompt])).last_hidden_state[0]
            want = torch.nn.functional.normalize(hidden.mean(0) if pooling == "mean" else hidden[-1], dim=0)
            assert told["embedding"] == pytest.approx(want.tolist(), abs=1e-4)


def test_a_killed_engine_changes_no_bit_of_what_is_read(server: RunningServer) -> None:
    """All three ways to read, side by side."""
    texts = [[(place * step + step) % 256 for step in range(300)] for place in range(300)]
    asking = [
        ("/v1/embeddings", {"input": texts, "encoding_format": "base64"}),
        ("/v1/completions", {"prompt": texts[:20], "echo": True, "logprobs": 2, "max_tokens": 3, "temperature": 0}),
        ("/v1/decisions", {"input": "Hello", "questions": [{"type": "predicate", "instructions": "It is late."}]}),
    ]

    def ask(killing: bool) -> list[Any]:
        with ThreadPoolExecutor() as pool:
            futures = [pool.submit(post, server, path, **body) for path, body in asking]
            if killing:
                wait_until(lambda: server.metric("headrace_prefix_cache_query_tokens_total") > queried)
                os.kill(server.engine, signal.SIGKILL)
            return [future.result() for future in futures]

    queried = server.metric("headrace_prefix_cache_query_tokens_total")
    resumed, calm = ask(True), ask(False)  # in this order: the second time, most is in the prefix cache
    assert server.metric("headrace_engine_restarts_total") == 1
    assert server.metric("headrace_requests_resumed_total") > 1
    assert resumed[0]["data"] == calm[0]["data"]
    assert resumed[1]["choices"] == calm[1]["choices"]
    assert resumed[2]["answers"] == calm[2]["answers"]
    assert server.metric("headrace_kv_invariant_violations_total") == 0


def test_a_decision_is_the_likelihood_of_its_labels(server: RunningServer, reference: LlamaForCausalLM) -> None:
    options = [("red", "like blood"), ("green", None), (True, None)]
    question = {
        "type": "choice",
        "instructions": "Which colour is it?",
        "choices": [{"value": value} | ({"description": text} if text else {}) for value, text in options],
    }
    (answer,) = post(server, "/v1/decisions", input="A rose.", questions=[question])["answers"]
    labels = labels_of(options)
    content = f"A rose.\n\n{asked('choice', 'Which colour is it?', labels)}"
    prompt = post(server, "/tokenize", messages=[{"role": "user", "content": content}])["tokens"]
    said = [post(server, "/tokenize", prompt=label.text, add_special_tokens=False)["tokens"] for label in labels]
    figures = []
    for tokens in said:
        rows = logprobs(reference, [*prompt, *tokens])[-len(tokens) :]
        figures.append(float(rows[range(len(tokens)), tokens].sum()))
    told = [each["probability"] for each in answer["probabilities"]]
    assert told == pytest.approx(probabilities(said, figures), abs=TOLERANCE)
    assert math.fsum(told) == pytest.approx(1.0, abs=1e-12)


def test_a_decision_is_the_same_alone_and_in_company(server: RunningServer) -> None:
    questions = [{"type": "predicate", "instructions": f"Number {place} is odd."} for place in range(30)]
    together = post(server, "/v1/decisions", input="Numbers.", questions=questions)
    alone = [post(server, "/v1/decisions", input="Numbers.", questions=[question]) for question in questions[:3]]
    assert [each["answers"][0] for each in alone] == together["answers"][:3]
    assert together["usage"]["input_tokens_details"]["cached_tokens"] > 0
