"""An adapter as the PEFT library saves it: what it adds to which modules of Hugging Face's model.

Fields are those of `peft.LoraConfig`. One that would ask for another computation than scale * B (A x) is refused.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoints.errors import CheckpointError
from model.checkpoints.json_file import read_object
from model.checkpoints.safetensors_file import ELEMENT_BYTES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_NEUTRAL: dict[str, tuple[object, ...]] = {  # whatever else these hold asks for more than an adapter of low rank
    "alora_invocation_tokens": (None,),
    "alpha_pattern": (None, {}),
    "arrow_config": (None,),
    "bias": (None, "none"),
    "layer_replication": (None,),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_bdlora": (None, False),
    "use_dora": (None, False),
    "use_qalora": (None, False),
    # The others start from weights that differ from the model's, or change them.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """What is read of it: `scale` * B (A x) is added to the output of each module."""

    path: Path
    scale: float
    modules: dict[str, tuple[Tensor, Tensor]]  # by name, A [r, in] and B [out, r] in fp32


def read_adapter_folder(path: Path) -> AdapterFolder:
    """Reads all of it. Raises CheckpointError, one line that names the file and the reason."""
    config = read_object(path / CONFIG)
    try:
        rank, scale = _rank(config), _scale(config)
        tensors = _tensors(path / WEIGHTS)
        return AdapterFolder(path, scale, _paired(tensors, rank))
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error


def _rank(config: Mapping[str, Any]) -> int:
    if config.get("peft_type") != "LORA":
        raise ValueError(f"peft_type {config.get('peft_type')!r} is not supported; LORA is")
    for key, values in _NEUTRAL.items():
        if config.get(key) not in values:
            raise ValueError(f"{key} {config[key]!r} is not supported")
    rank = config.get("r")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"r has to be a number of dimensions, not {rank!r}")
    return rank


def _scale(config: Mapping[str, Any]) -> float:
    """lora_alpha / r, or by rank-stabilised LoRA (Kalajdzievski 2023) lora_alpha / sqrt(r)."""
    rank, alpha = config["r"], config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"lora_alpha has to be a number, not {alpha!r}")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        if not file.is_file():
            pickled = " (adapter_model.bin, which is pickled, is not read)" if file.with_suffix(".bin").exists() else ""
            raise ValueError(f"there is no {file.name}{pickled}")
        with safe_open(file, framework="pt") as stored:
            names = list(stored.keys())
            for name in names:
                dtype = stored.get_slice(name).get_dtype()
                if dtype not in ELEMENT_BYTES:
                    raise ValueError(f"tensor {name} has dtype {dtype}; supported are {', '.join(ELEMENT_BYTES)}")
            return {name: stored.get_tensor(name).float() for name in names}
    except (SafetensorError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{file.name}: {reason}") from error


def _paired(tensors: Mapping[str, Tensor], rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise ValueError(f"tensor {name} is not supported; lora_A and lora_B of linear modules are")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name} holds numbers that are not finite")
        if tensor.dim() != 2 or tensor.shape[0 if match[2] == "A" else 1] != rank:
            raise ValueError(f"tensor {name} has shape {tuple(tensor.shape)}, which is not of rank {rank}")
        found.setdefault(match[1], {})[match[2]] = tensor
    if not found:
        raise ValueError(f"{WEIGHTS} holds no tensors")
    for module, pair in found.items():
        if len(pair) < 2:
            raise ValueError(f"module {module} has {'lora_A' if 'A' in pair else 'lora_B'} only")
    return {module: (pair["A"], pair["B"]) for module, pair in sorted(found.items())}
