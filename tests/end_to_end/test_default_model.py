"""The default model's greedy answers through HTTP, held against transformers on the same weights in fp32."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import gguf
import httpx
import pytest
import torch
from default_reference import reference_model
from support import RunningServer, running_server
from transformers import LlamaForCausalLM

MAX_TOKENS = 64
NEAR_TIE = 0.05  # of logits
MAX_DIFFERENCES = 5

TOPICS = [
    "the sea", "bread", "prime numbers", "the French Revolution", "a lost cat",
    "photosynthesis", "chess", "winter in Norway", "love", "the Moon",
]  # fmt: skip
TASKS = [
    "What is the most important thing to know about {}?",
    "Write a short poem about {}.",
    "List five facts about {}:\n1.",
    "Write a Python function that has to do with {}.",
    "Explain {} to a child of five.",
    "Translate into French: 'I often think of {}.'",
    "Tell me a story about {} that begins on a Monday.",
    "Q: Who discovered {}?\nA:",
    "Give me a JSON object that describes {} with three keys.",
    "Continue: 'She opened the old book on {} and read'",
]
PROMPTS = [task.format(topic) for task in TASKS for topic in TOPICS]


@pytest.fixture(scope="module")
def server(default_model: Path) -> Iterator[RunningServer]:
    with running_server("--model", str(default_model)) as server:
        yield server


@pytest.fixture(scope="module")
def file(default_model: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(default_model)


@pytest.fixture(scope="module")
def reference(file: gguf.GGUFReader) -> LlamaForCausalLM:
    return reference_model(file)


@pytest.fixture(scope="module")
def ids_by_bytes(file: gguf.GGUFReader) -> dict[bytes, int]:
    """The vocabulary is written in GPT-2's alphabet, where bytes that do not print stand for others, from 256 on."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    alphabet = {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokens = file.fields["tokenizer.ggml.tokens"].contents()
    kinds = file.fields["tokenizer.ggml.token_type"].contents()
    return {bytes(alphabet[char] for char in token): i for i, token in enumerate(tokens) if kinds[i] == 1}


async def answer(client: httpx.AsyncClient, prompt: str) -> tuple[list[int], list[bytes]]:
    """Token ids of the rendered prompt, and the bytes of each token of the greedy answer."""
    messages = [{"role": "user", "content": prompt}]
    asked = (await client.post("/tokenize", json={"messages": messages})).json()["tokens"]
    fields = {"messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS, "logprobs": True}
    choice = (await client.post("/v1/chat/completions", json=fields)).json()["choices"][0]
    return asked, [bytes(token["bytes"]) for token in choice["logprobs"]["content"]]


async def answers(url: str) -> list[tuple[list[int], list[bytes]]]:
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=128)) as client:
        return list(await asyncio.gather(*(answer(client, prompt) for prompt in PROMPTS)))


@torch.inference_mode()
def gaps(reference: LlamaForCausalLM, prompt: list[int], said: list[int]) -> torch.Tensor:
    """For each token said: how far its logit lies below the best one, given all before it."""
    logits = reference(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
    return logits.max(-1).values - logits[torch.arange(len(said)), said]


def test_a_hundred_greedy_answers_are_those_of_transformers_but_for_near_ties(
    server: RunningServer, reference: LlamaForCausalLM, ids_by_bytes: dict[bytes, int]
) -> None:
    differing = []
    for prompt, pieces in asyncio.run(answers(server.url)):
        assert pieces
        gap = gaps(reference, prompt, [ids_by_bytes[piece] for piece in pieces])
        if gap.max() > 0:
            differing.append(float(gap[gap > 0][0]))
            assert gap.max() <= NEAR_TIE
    assert len(differing) < MAX_DIFFERENCES, differing


def test_the_capital_of_france(server: RunningServer) -> None:
    """8-bit activations lose this answer on this model."""
    fields = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=fields, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."


@torch.inference_mode()
def test_what_a_text_tells_is_what_transformers_says_of_it(server: RunningServer, reference: LlamaForCausalLM) -> None:
    text = "\n".join(PROMPTS[::7])
    tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()["tokens"]
    fields = {"prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=fields, timeout=60).json()
    nothing, *told = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert nothing is None
    rows = torch.log_softmax(reference(torch.tensor([tokens])).logits[0, :-1], -1)
    assert told == pytest.approx(rows[range(len(told)), tokens[1:]].tolist(), abs=0.01)
    hidden = reference.model(torch.tensor([tokens])).last_hidden_state[0]
    for pooling, pooled in (("mean", hidden.mean(0)), ("last", hidden[-1])):
        fields = {"input": tokens, "pooling": pooling}
        answer = httpx.post(f"{server.url}/v1/embeddings", json=fields, timeout=60).json()
        vector = torch.tensor(answer["data"][0]["embedding"])
        assert float(torch.dot(vector, torch.nn.functional.normalize(pooled, dim=0))) > 1 - 1e-6
