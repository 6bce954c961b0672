"""Every family from safetensors gives the logits of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_the_logits_of_transformers(family: str, tmp_path: Path, lively: Any, parity: Any) -> None:
    model = lively(FAMILIES[family]())
    model.save_pretrained(tmp_path)
    parity(tmp_path, model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_shards_are_one_model(family: str, tmp_path: Path, lively: Any, parity: Any) -> None:
    model = lively(FAMILIES[family]())
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    parity(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama, tied", "qwen3_moe", "gemma3", "gpt2"])
def test_half_precision_files_are_computed_in_fp32(
    family: str, dtype: torch.dtype, tmp_path: Path, lively: Any, parity: Any
) -> None:
    lively(FAMILIES[family]()).to(dtype).save_pretrained(tmp_path)
    wide = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    parity(tmp_path, wide.eval())


def test_gpt2_files_of_the_bare_model_have_shorter_names(tmp_path: Path, lively: Any, parity: Any) -> None:
    model = lively(FAMILIES["gpt2"]())
    model.transformer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"
    parity(tmp_path, model)
