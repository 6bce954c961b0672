"""An adapter says what PEFT says with it, alone and beside others; what it asks for in vain is refused."""

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import FAMILIES, lively
from peft import LoraConfig
from random_adapters import CONFIG, write_adapter
from safetensors.torch import save_file
from torch import Tensor

from model.adapters import Adapter, read_adapter
from model.batch import Batch, Chunk
from model.checkpoints.errors import CheckpointError
from model.inputs import pack
from model.kernels import Kernels, select
from model.kv_cache import BLOCK_SIZE, KVCache
from model.linear import Adapted

CPU = torch.device("cpu")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
TARGETS = {
    "llama": ALL,
    "llama with biases": ["q_proj", "v_proj", "up_proj"],
    "qwen2": ["k_proj", "gate_proj"],
    "qwen3": ALL,
    "gemma2": ALL,
    "gemma3": ["v_proj", "down_proj"],
    "mixtral": ATTENTION,
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def adapted_model(name: str, folder: Path, seed: int = 5, **options: Any) -> tuple[Any, Path, Path]:
    """A tiny model with a random adapter, by PEFT: the two as one, the model's folder and the adapter's."""
    lively(FAMILIES[name]()).save_pretrained(folder / "model")
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": TARGETS[name]} | options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT asks of transformers is on its way out there
        model = peft.get_peft_model(lively(FAMILIES[name]()), config)
    torch.manual_seed(seed)
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            parameter.data.normal_(std=0.15)
    model.save_pretrained(folder / "adapter")
    return model.eval(), folder / "model", folder / "adapter"


@pytest.mark.parametrize("name", TARGETS)
def test_it_says_what_peft_says(name: str, tmp_path: Path, load: Any, theirs: Any, sequences: list[list[int]]) -> None:
    model, base, folder = adapted_model(name, tmp_path)
    want = theirs(model, sequences)
    with model.disable_adapter():
        plain = theirs(model, sequences)
    assert max(float((a - b).abs().max()) for a, b in zip(want, plain, strict=True)) > 1, "it would not be missed"
    for kernels in (Kernels(CPU, torch.float32), select(CPU, torch.float32)):
        transformer = load(base, kernels).transformer
        adapter = read_adapter(folder, transformer)
        for tokens, reference, without in zip(sequences, want, plain, strict=True):
            assert (logits(transformer, tokens, adapter) - reference).abs().max() < 1e-4
            assert (logits(transformer, tokens) - without).abs().max() < 1e-4


@torch.inference_mode()
def logits(transformer: Any, tokens: list[int], adapter: Adapter | None = None) -> Tensor:
    blocks = list(range(-(-len(tokens) // BLOCK_SIZE)))
    cache = KVCache(transformer.config, len(blocks), torch.float32, CPU)
    inputs = pack(Batch([Chunk(tokens, 0, len(tokens), blocks, len(tokens), None)]), CPU)
    adapted = [Adapted(slice(0, len(tokens)), adapter.updates)] if adapter else []
    rows = transformer.forward(transformer.rows(inputs), inputs.spans, cache, adapted)
    return transformer.logits(rows)


def test_rank_stabilised_scaling_is_pefts(tmp_path: Path, load: Any, theirs: Any, sequences: list[list[int]]) -> None:
    model, base, folder = adapted_model("llama", tmp_path, use_rslora=True)
    transformer = load(base).transformer
    adapter = read_adapter(folder, transformer)
    for tokens, reference in zip(sequences, theirs(model, sequences), strict=True):
        assert (logits(transformer, tokens, adapter) - reference).abs().max() < 1e-4


def test_it_says_what_the_model_says_into_which_it_was_merged(
    tmp_path: Path, load: Any, sequences: list[list[int]]
) -> None:
    model, base, folder = adapted_model("qwen3", tmp_path)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    transformer, merged = load(base).transformer, load(tmp_path / "merged").transformer
    adapter = read_adapter(folder, transformer)
    for tokens in sequences:
        assert (logits(transformer, tokens, adapter) - logits(merged, tokens)).abs().max() < 1e-4


Q_PROJ = "model.layers.0.self_attn.q_proj"
BAD_CONFIGS = [
    ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
    ({"use_dora": True}, "use_dora True"),
    ({"bias": "all"}, "bias 'all'"),
    ({"lora_bias": True}, "lora_bias True"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
    ({"target_parameters": ["experts.down"]}, "target_parameters"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"r": 0}, "r has to be"),
    ({"r": True}, "r has to be"),
    ({"r": "4"}, "r has to be"),
    ({"r": 5}, "is not of rank 5"),
    ({"lora_alpha": None}, "lora_alpha has to be"),
    ({"lora_alpha": float("nan")}, "lora_alpha has to be"),
]
BAD_TENSORS: list[tuple[dict[str, Tensor], str]] = [
    ({}, "holds no tensors"),
    ({f"{Q_PROJ}.lora_A.weight": torch.zeros(4, 64)}, "has lora_A only"),
    ({f"{Q_PROJ}.lora_magnitude_vector": torch.zeros(64)}, "lora_magnitude_vector is not supported"),
    ({f"{Q_PROJ}.lora_A.weight": torch.full((4, 64), torch.nan)}, "not finite"),
    ({f"{Q_PROJ}.lora_A.weight": torch.zeros(4, 64, dtype=torch.float64)}, "dtype F64"),
    ({f"{Q_PROJ}.lora_A.weight": torch.zeros(4)}, "is not of rank 4"),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, load: Any) -> Any:
    folder = tmp_path_factory.mktemp("llama")
    lively(FAMILIES["llama"]()).save_pretrained(folder)
    return load(folder).transformer


@pytest.mark.parametrize(("config", "says"), BAD_CONFIGS, ids=[says for _, says in BAD_CONFIGS])
def test_what_asks_for_another_computation_is_refused_in_one_line(
    llama: Any, tmp_path: Path, config: dict[str, object], says: str
) -> None:
    folder = write_adapter(tmp_path, {Q_PROJ: (64, 64)}, 1)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    assert says in refusal(folder, llama)


@pytest.mark.parametrize(("tensors", "says"), BAD_TENSORS, ids=[says for _, says in BAD_TENSORS])
def test_tensors_that_are_no_pairs_of_a_rank_are_refused(
    llama: Any, tmp_path: Path, tensors: dict[str, Tensor], says: str
) -> None:
    folder = write_adapter(tmp_path, {Q_PROJ: (64, 64)}, 1)
    save_file(tensors, folder / "adapter_model.safetensors")
    assert says in refusal(folder, llama)


@pytest.mark.parametrize(
    ("module", "shape", "says"),
    [
        ("lm_head", (96, 64), "no module lm_head"),
        ("model.embed_tokens", (96, 64), "no module model.embed_tokens"),
        ("model.layers.3.self_attn.q_proj", (64, 64), "no module model.layers.3"),
        ("transformer.h.0.attn.c_proj2", (64, 64), "no module"),
        (Q_PROJ, (64, 32), "goes from 32 to 64 numbers, the model's from 64 to 64"),
        (Q_PROJ, (32, 64), "goes from 64 to 32 numbers"),
    ],
)
def test_modules_that_the_model_does_not_have_are_refused(
    llama: Any, tmp_path: Path, module: str, shape: tuple[int, int], says: str
) -> None:
    assert says in refusal(write_adapter(tmp_path, {module: shape}, 1), llama)


def test_files_that_are_missing_or_broken_are_refused(llama: Any, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, {Q_PROJ: (64, 64)}, 1)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    assert "adapter_model.safetensors: " in refusal(folder, llama)
    weights.rename(weights.with_suffix(".bin"))
    assert "adapter_model.bin, which is pickled, is not read" in refusal(folder, llama)
    (folder / "adapter_config.json").write_text("[]")
    assert "not a JSON object" in refusal(folder, llama)


def refusal(folder: Path, transformer: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_adapter(folder, transformer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_equal_weights_have_one_digest_and_any_others_another(llama: Any, tmp_path: Path) -> None:
    shapes = {Q_PROJ: (64, 64)}
    ways = [{"seed": 1}, {"seed": 1}, {"seed": 2}, {"seed": 1, "lora_alpha": 9}, {"seed": 1, "r": 5}]
    folders = [write_adapter(tmp_path / str(place), shapes, **way) for place, way in enumerate(ways)]
    first, again, *others = [read_adapter(folder, llama).digest for folder in folders]
    assert first == again
    assert len({first, *others}) == 1 + len(others)
