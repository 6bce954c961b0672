"""Which matrices of a folder are stored in parts, as its config.json says, and how they are put together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from model.quantization import PackedMatrix
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
    return _METHODS[method](fields)


def _honour(fields: Json, key: str, *supported: Any, default: Any = None) -> Any:
    """The value of a key, which has to be one of those that are supported."""
    value = fields.get(key, default)
    if value not in supported:
        listed = ", ".join(repr(each) for each in supported)
        raise ValueError(f"quantization_config: {key} {value!r} is not supported; supported are {listed}")
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


_METHODS: dict[str, Callable[[Json], Scheme]] = {"gptq": _gptq}
