"""Random adapters as PEFT writes them, for any model of ours, without PEFT."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.families.adapter_names import TARGETS
from model.transformer import Transformer

Shapes = dict[str, tuple[int, int]]  # module -> rows and columns of its weight

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
GPT2 = {ours: theirs for theirs, ours in TARGETS.items() if ".c_" in theirs}
LLAMA = {ours: theirs for theirs, ours in TARGETS.items() if ".c_" not in theirs}


def shapes_of(transformer: Transformer) -> Shapes:
    """Every projection that an adapter can add to, under the names of the Llama lineage or of GPT-2."""
    shapes: Shapes = {}
    for linear in transformer.projections():
        names = [name.split(".", 2) for name in linear.parts]
        if transformer.config.family == "gpt2":
            module = GPT2[tuple(name[2] for name in names)]
            shapes[f"transformer.h.{names[0][1]}.{module}"] = (sum(linear.parts.values()), linear.in_features)
            continue
        for (_, layer, part), rows in zip(names, linear.parts.values(), strict=True):
            shapes[f"model.layers.{layer}.{LLAMA[part,]}"] = (rows, linear.in_features)
    return shapes


def write_adapter(folder: Path, shapes: Shapes, seed: int, std: float = 0.15, **config: Any) -> Path:
    """Opinionated enough to be noticed."""
    settings = CONFIG | config
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(settings["r"], columns, generator=draw) * std
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, settings["r"], generator=draw) * std
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
