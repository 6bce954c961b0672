"""A model shared by several ranks says what one says, and a rank reads no more of the file than its part."""

import ctypes
import json
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from families import FAMILIES, NO_HEAD_DIM, SIZES, lively, lively_paper, write_paper
from rank_threads import PROMPTS, agree, chunk, generate, made, on_ranks, opened, tokens

from model.adapters import read_adapter
from model.batch import Batch, Chunk, Finding, Reading
from model.checkpoints.errors import CheckpointError
from model.memory import GIB
from model.parallel import Ranks
from model.runner import Runner
from model.transformer import Transformer
from model.weights import Weights, WeightsError

NINE_HEADS = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}
SHAPES: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "one KV head": lambda: hf.LlamaConfig(**{**NO_HEAD_DIM, "num_key_value_heads": 1}),
    "heads that do not share out evenly": lambda: hf.LlamaConfig(**{**NO_HEAD_DIM, **NINE_HEADS, "vocab_size": 97}),
}


@pytest.mark.parametrize("family", [*FAMILIES, *SHAPES])
def test_a_family_says_the_same_on_three_ranks(family: str, tmp_path: Path) -> None:
    lively((FAMILIES | SHAPES)[family]()).save_pretrained(tmp_path)
    agree(tmp_path, (3,))


def test_every_family_says_the_same_on_two_ranks_over_gloo(tmp_path: Path) -> None:
    models = {str(tmp_path / str(place)): make() for place, make in enumerate((FAMILIES | SHAPES).values())}
    for folder, config in models.items():
        lively(config).save_pretrained(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(Path(__file__).parents[1])}
    program = [sys.executable, "-P", str(Path(__file__).parents[1] / "gloo_rank.py")]
    ranks = [
        subprocess.Popen([*program, rank, port, *models], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    said = [[json.loads(line) for line in rank.communicate(timeout=300)[0].splitlines()] for rank in ranks]
    assert said[0] == said[1] == [tokens(generate(made(opened(Path(folder))))) for folder in models]


@pytest.mark.parametrize("is_tied", [True, False])
def test_so_does_the_papers_decoder(is_tied: bool, tmp_path: Path) -> None:
    write_paper(lively_paper(is_tied), tmp_path)
    agree(tmp_path, (2, 3))


def test_so_do_packed_weights(default_model: Path) -> None:
    agree(default_model, (2, 3))


def test_a_rows_bits_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    lively(FAMILIES["gemma2"]()).save_pretrained(tmp_path)

    def rows(runner: Runner) -> tuple[list[object], list[object]]:
        chunks = [chunk(place, prompt, 0) for place, prompt in enumerate(PROMPTS)]
        together = runner.run(Batch(chunks)).samples
        return list(together), [runner.run(Batch([one])).samples[0] for one in chunks]

    for together, alone in on_ranks(tmp_path, 3, rows):
        assert together == alone


def test_a_prompt_tells_the_same(tmp_path: Path) -> None:
    lively(FAMILIES["llama, tied"]()).save_pretrained(tmp_path)

    def read(runner: Runner) -> list[Finding]:
        readings = Reading(top_logprobs=2), Reading(dimensions=8)
        chunks = [Chunk(PROMPTS[3], 0, 40, [4, 5, 6], 40, None, reading=reading) for reading in readings]
        return list(runner.run(Batch(chunks)).findings.values())

    (scores, vector), other = on_ranks(tmp_path, 2, read)
    assert other == [scores, vector]
    their_scores, their_vector = read(made(opened(tmp_path)))
    assert scores.ranks == their_scores.ranks
    both = zip(scores.logprobs, their_scores.logprobs, strict=True)
    assert max(abs(ours.chosen - theirs.chosen) for ours, theirs in both) < 1e-4
    vectors = [torch.frombuffer(bytearray(each.vector), dtype=torch.float32) for each in (vector, their_vector)]
    assert torch.allclose(*vectors, atol=1e-5)


def test_a_rank_touches_no_page_of_anothers_part(tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "head_dim": 512, "intermediate_size": 4096, "vocab_size": 4096}
    config = hf.LlamaConfig(**{**SIZES, **wide, "num_hidden_layers": 1, "tie_word_embeddings": True})
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for rank in range(2):
        model = opened(tmp_path, Ranks(rank, 2, rank, 2))
        own, taken = model.share(), []
        files = {info.name: mmap.mmap(-1, info.nbytes, flags=mmap.MAP_PRIVATE) for info in model.checkpoint.infos}
        tensors = {
            info.name: torch.frombuffer(files[info.name], dtype=torch.float32).view(info.shape)
            for info in model.checkpoint.infos
        }
        weights = Weights(tensors, model.description.names, on_take=taken.append, cuts=own.cuts)
        Transformer(own.config, weights, model.kernels, model.ranks)
        weights.finish()
        for info in model.checkpoint.infos:
            share = own.portion(info.name, info.nbytes)
            assert touched(tensors[info.name]) == -(-share // mmap.PAGESIZE), info.name
        assert sum(taken) == sum(own.portion(info.name, info.nbytes) for info in model.checkpoint.infos)


def touched(tensor: torch.Tensor) -> int:
    """Pages of its mapping that have been looked at since it was made."""
    pages = (ctypes.c_ubyte * (-(-tensor.nbytes // mmap.PAGESIZE)))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes), pages) == 0
    return sum(page & 1 for page in pages)


def test_the_ranks_parts_are_planned_for(tmp_path: Path) -> None:
    lively(FAMILIES["llama"]()).save_pretrained(tmp_path)
    whole = opened(tmp_path).plan()
    parts = [opened(tmp_path, Ranks(rank, 2, rank, 2)).plan() for rank in range(2)]
    assert whole.weights < sum(part.weights for part in parts) < whole.weights * 1.1  # norms are everybody's
    assert [part.block * 2 for part in parts] == [whole.block] * 2


def test_memory_for_some_blocks_holds_as_many_on_every_rank(tmp_path: Path) -> None:
    lively(SHAPES["heads that do not share out evenly"]()).save_pretrained(tmp_path)
    parts = [opened(tmp_path, Ranks(rank, 2, rank, 2)).plan().block for rank in range(2)]
    assert parts[0] * 2 == parts[1]  # one KV head, and two
    memory = (6 * parts[1] + 1) / GIB  # one block is for nobody
    planned = on_ranks(tmp_path, 2, lambda runner: runner.cache.num_blocks, kv_memory=memory)
    assert planned == [5, 5]


def test_a_model_without_parts_for_all_is_refused(tmp_path: Path) -> None:
    lively(FAMILIES["llama"]()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the heads that share a KV head can be cut into 2 parts, too few for 3 ranks"):
        opened(tmp_path, Ranks(0, 5)).share()


def test_a_tensor_of_another_shape_is_not_cut(tmp_path: Path) -> None:
    lively(FAMILIES["llama"]()).save_pretrained(tmp_path)
    model = opened(tmp_path, Ranks(0, 2))
    own, tensors = model.share(), dict(model.checkpoint.tensors())
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.zeros(64, 81)
    with pytest.raises(WeightsError, match=r"down_proj.weight has shape \(64, 81\), the configuration says \(64, 80\)"):
        Transformer(own.config, Weights(tensors, model.description.names, cuts=own.cuts), model.kernels, model.ranks)


def test_adapters_are_refused(tmp_path: Path) -> None:
    lively(FAMILIES["llama"]()).save_pretrained(tmp_path)
    model = opened(tmp_path, Ranks(0, 2))
    own, names = model.share(), model.description.names
    weights = Weights(dict(model.checkpoint.tensors()), names, cuts=own.cuts)
    transformer = Transformer(own.config, weights, model.kernels, model.ranks)
    with pytest.raises(CheckpointError, match="need tensor-parallel 1"):
        read_adapter(tmp_path, transformer)
