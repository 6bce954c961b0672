"""Which matrices of a folder are stored in parts, as its config.json says, and how they are put together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from model.quantization import PackedMatrix
from model.quantization.awq import AwqMatrix
from model.quantization.compressed import CompressedLayout, CompressedMatrix
from model.quantization.float8 import Float8Layout, Float8Matrix
from model.quantization.gptq import GptqLayout, GptqMatrix

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scheme:
    """What the parts of a matrix are called behind its module's name.

    A module that has the `marker` is packed; any other is as it is, whether the configuration lists it as left out
    or, like norms, could not be meant.
    """

    marker: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    build: Callable[[Mapping[str, Tensor]], PackedMatrix]

    def assemble(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor | PackedMatrix]:
        """The tensors, those parts put together under the name of the weight. Raises ValueError."""
        whole: dict[str, Tensor | PackedMatrix] = {}
        for name, tensor in tensors.items():
            module, _, last = name.rpartition(".")
            if last not in (*self.required, *self.optional) or f"{module}.{self.marker}" not in tensors:
                whole[name] = tensor
            elif last == self.marker:
                whole[f"{module}.weight"] = self._put_together(module, tensors)
        return whole

    def _put_together(self, module: str, tensors: Mapping[str, Tensor]) -> PackedMatrix:
        for part in self.required:
            if f"{module}.{part}" not in tensors:
                raise ValueError(f"tensor {module}.{part} is missing beside {module}.{self.marker}")
        names = {part: f"{module}.{part}" for part in (*self.required, *self.optional)}
        try:
            return self.build({part: tensors[name] for part, name in names.items() if name in tensors})
        except ValueError as error:
            raise ValueError(f"{module}: {error}") from error


def read_scheme(config: Json) -> Scheme | None:
    """The scheme of config.json, None where nothing is packed. Raises ValueError, which names what is not honoured."""
    fields = config.get("quantization_config")
    if fields is None:
        return None
    if not isinstance(fields, Mapping):
        raise ValueError("quantization_config is not an object")
    method = fields.get("quant_method")
    if method not in _METHODS:
        supported = ", ".join(_METHODS)
        raise ValueError(f"quantization_config: quant_method {method!r} is not supported; supported are {supported}")
    try:
        return _METHODS[method](fields)
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"quantization_config is not as {method} writes it: {error}") from error


def _honour(fields: Json, key: str, *supported: Any, default: Any = None, within: str = "") -> Any:
    """The value of a key, which has to be one of those that are supported; `within` says where the fields are."""
    value = fields.get(key, default)
    if value not in supported:
        listed = ", ".join(repr(each) for each in supported)
        raise ValueError(f"quantization_config: {within}{key} {value!r} is not supported; supported are {listed}")
    return value


def _group(fields: Json, key: str = "group_size") -> int | None:
    size = fields.get(key)
    if not isinstance(size, int) or (size != -1 and (size <= 0 or size % 8)):
        raise ValueError(f"quantization_config: {key} {size!r} is not supported; supported are -1 and multiples of 8")
    return None if size == -1 else size


def _gptq(fields: Json) -> Scheme:
    bits = _honour(fields, "bits", 4, 8)
    form = _honour(fields, "checkpoint_format", "gptq", "gptq_v2", default=fields.get("format", "gptq"))
    _honour(fields, "is_marlin_format", False, default=False)
    _honour(fields, "dynamic", None, {})
    is_ordered = _honour(fields, "desc_act", False, True, default=False)
    layout = GptqLayout(bits, _group(fields), 1 if form == "gptq" else 0, is_ordered)
    required = "qweight", "qzeros", "scales"
    return Scheme("qweight", required, ("g_idx",), partial(GptqMatrix.build, layout))


def _awq(fields: Json) -> Scheme:
    _honour(fields, "w_bit" if "w_bit" in fields else "bits", 4)
    _honour(fields, "version", "gemm", "GEMM", default="gemm")
    _honour(fields, "zero_point", True, default=True)
    group = _group(fields, "q_group_size" if "q_group_size" in fields else "group_size")
    return Scheme("qweight", ("qweight", "qzeros", "scales"), (), partial(AwqMatrix.build, group))


def _fp8(fields: Json) -> Scheme:
    """DeepSeek's and Qwen's blocks, or a scale for each matrix."""
    _honour(fields, "fmt", "e4m3", default="e4m3")
    for key in ("scale_fmt", "kv_cache_scheme"):
        _honour(fields, key, None)
    block = fields.get("weight_block_size")
    is_static = _honour(fields, "activation_scheme", "dynamic", "static", default="dynamic") == "static"
    if block is not None:
        _honour(fields, "activation_scheme", "dynamic", default="dynamic")
        block = _block(fields, "weight_block_size")
    scale = "weight_scale" if block is None else "weight_scale_inv"
    return _floats(Float8Layout(scale, block, True, block[1] if block else None), is_static)


def _floats(layout: Float8Layout, is_static: bool) -> Scheme:
    required = "weight", layout.scale_name, *(["input_scale"] if is_static else [])
    return Scheme(layout.scale_name, tuple(required), (), partial(Float8Matrix.build, layout))


def _block(fields: Json, key: str, within: str = "") -> tuple[int, int]:
    block = fields.get(key)
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)):
        raise ValueError(f"quantization_config: {within}{key} {block!r} is not supported; two numbers are")
    return block[0], block[1]


def _compressed(fields: Json) -> Scheme:
    """All packed modules have one scheme: which these are, the tensors say as well as `targets` and `ignore`."""
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        _honour(fields, key, None, {})
    groups = fields.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise ValueError("quantization_config: config_groups is not supported unless it has exactly one group")
    ((name, group),) = groups.items()
    within = f"config_groups.{name}."
    _honour(group, "output_activations", None, within=within)
    weights, inputs = group["weights"], group.get("input_activations")
    kind = _honour(weights, "type", "int", "float", within=f"{within}weights.")
    form = group.get("format") or fields.get("format")
    forms = ("pack-quantized", "int-quantized") if kind == "int" else ("float-quantized",)
    _honour({"format": form}, "format", *forms, "naive-quantized")
    if kind == "float":
        return _compressed_floats(weights, inputs, within)
    return _compressed_integers(weights, inputs, form == "pack-quantized", within)


def _compressed_floats(weights: Json, inputs: Json | None, within: str) -> Scheme:
    _honour(weights, "num_bits", 8, within=f"{within}weights.")
    _honour(weights, "symmetric", True, default=True, within=f"{within}weights.")
    strategy = _honour(weights, "strategy", "tensor", "channel", "block", within=f"{within}weights.")
    block = _block(weights, "block_structure", f"{within}weights.") if strategy == "block" else None
    is_static = _inputs(inputs, "float", within, "group" if block else "token")
    group = None if inputs is None or not block else _group(inputs)
    return _floats(Float8Layout("weight_scale", block, inputs is not None, group), is_static)


def _compressed_integers(weights: Json, inputs: Json | None, is_in_words: bool, within: str) -> Scheme:
    within_weights = f"{within}weights."
    bits = _honour(weights, "num_bits", *((4, 8) if is_in_words else (8,)), within=within_weights)
    strategies = ("tensor", "channel") if inputs is not None else ("tensor", "channel", "group")
    strategy = _honour(weights, "strategy", *strategies, within=within_weights)
    is_symmetric = _honour(weights, "symmetric", True, False, default=True, within=within_weights)
    if is_in_words and inputs is not None:
        raise ValueError(f"quantization_config: {within}input_activations are not supported with pack-quantized")
    is_static = _inputs(inputs, "int", within, "token")
    layout = CompressedLayout(bits, _group(weights) if strategy == "group" else None, is_symmetric, inputs is not None)
    stored = "weight_packed" if is_in_words else "weight"
    required = stored, "weight_scale", *(["input_scale"] if is_static else [])
    optional = "weight_zero_point", *(["weight_shape", "weight_g_idx"] if is_in_words else [])
    return Scheme("weight_scale", tuple(required), tuple(optional), partial(CompressedMatrix.build, layout))


def _inputs(inputs: Json | None, kind: str, within: str, dynamic_strategy: str) -> bool:
    """Whether activations have a scale of the checkpoint's. Refuses what would be rounded by more than a row says."""
    if inputs is None:
        return False
    within += "input_activations."
    _honour(inputs, "type", kind, within=within)
    _honour(inputs, "num_bits", 8, within=within)
    _honour(inputs, "symmetric", True, default=True, within=within)
    is_dynamic = _honour(inputs, "dynamic", True, False, default=False, within=within)
    _honour(inputs, "strategy", dynamic_strategy if is_dynamic else "tensor", within=within)
    return not is_dynamic


_METHODS: dict[str, Callable[[Json], Scheme]] = {
    **{"gptq": _gptq, "awq": _awq, "fp8": _fp8, "compressed-tensors": _compressed}
}
