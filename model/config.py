"""A model as features: what every layer consumes, and nothing about where it came from."""

import math
from dataclasses import dataclass, field
from enum import StrEnum


class Norm(StrEnum):
    RMS = "rms"  # Zhang & Sennrich 2019
    LAYER = "layer"  # Ba, Kiros & Hinton 2016


class NormPlace(StrEnum):
    """Where a sublayer's norm stands: LayerNorm(x + f(x)), x + f(norm(x)), or x + norm(f(norm(x)))."""

    POST = "post"  # Vaswani et al. 2017
    PRE = "pre"  # GPT-2, Llama
    SANDWICH = "sandwich"  # Gemma 2


class Activation(StrEnum):
    RELU = "relu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SILU = "silu"


class Positions(StrEnum):
    SINUSOIDAL = "sinusoidal"
    LEARNED = "learned"
    ROTARY = "rotary"


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions are divided by `factor` (Chen et al. 2023)."""

    factor: float


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """The base grows with the length (NTK-aware).

    Reference implementations let it follow the longest sequence seen so far, which makes an answer depend on its
    chunking. Here it is fixed by the longest sequence the model serves, so that equal requests get equal answers.
    """

    factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low frequencies are divided by `factor`, high ones kept, those between interpolated (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """NTK-by-parts interpolation with attention temperature (Peng et al. 2023)."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None  # None: 0.1 ln(factor) + 1, or the ratio of the two mscales
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions (Su et al. 2021), rotating dimension i with i + head_dim / 2."""

    theta: float
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in place of each MLP (Shazeer et al. 2017)."""

    count: int
    per_token: int
    hidden_dim: int
    normalize: bool  # the chosen experts' weights sum to one


_ATTENTION_COST = 2.0  # of one of its multiplications, in those of products with 4-bit weights; measured on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only Transformer. Biases and query/key norms are there where the checkpoint has them."""

    family: str  # for people and logs; no layer reads it
    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int  # of the MLP
    context_length: int  # positions the model was made for

    norm: Norm = Norm.RMS
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # added to the checkpoint's norm weights (Gemma stores w - 1)
    norm_place: NormPlace = NormPlace.PRE
    activation: Activation = Activation.SILU
    gated: bool = True  # down(activation(gate(x)) * up(x)) instead of down(activation(up(x)))
    experts: Experts | None = None

    positions: Positions = Positions.ROTARY
    rope: Rope = field(default_factory=lambda: Rope(theta=10000.0))
    local_rope: Rope | None = None  # of windowed layers, where it differs (Gemma 3)
    windows: tuple[int | None, ...] = ()  # per layer: how many last positions attention sees; () = all, everywhere

    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_softcap: float | None = None  # scores become cap * tanh(scores / cap)
    logits_softcap: float | None = None
    embedding_scale: float = 1.0
    tied_head: bool = False

    @property
    def context_rate(self) -> float:
        """Positions to which a token's attention takes as long as its products with the weights of all layers.

        Only layers that see the whole context count: the others' attention does not grow.
        """
        seeing = sum(self.window(layer) is None for layer in range(self.num_layers))
        if not seeing:
            return math.inf
        heads = self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        experts = self.experts
        hidden = self.hidden_dim if experts is None else experts.hidden_dim * experts.per_token
        weights = self.num_layers * self.dim * (heads + hidden * (3 if self.gated else 2))
        return weights / (seeing * 2 * self.num_heads * self.head_dim * _ATTENTION_COST)

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    def rope_of(self, layer: int) -> Rope:
        return self.local_rope if self.local_rope and self.window(layer) else self.rope
