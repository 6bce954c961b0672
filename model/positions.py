"""How a Transformer knows where a token stands: sinusoidal, learned or rotary."""

import math

import torch
from torch import Tensor

from model.config import DynamicScaling, LinearScaling, Llama3Scaling, Rope, YarnScaling


def sinusoids(positions_T: Tensor, dim: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5: sines in the even dimensions, cosines in the odd ones -> fp32 [T, dim]."""
    exponents = torch.arange(0, dim, 2, device=positions_T.device).float() / dim
    angles = positions_T.float()[:, None] * torch.pow(10000.0, -exponents)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :dim]


class Rotary:
    """Turns positions into the angles by which queries and keys are rotated."""

    def __init__(
        self, rope: Rope, head_dim: int, context_length: int, device: torch.device, divisors: Tensor | None = None
    ) -> None:
        """`divisors` [head_dim / 2], one a frequency, come with the checkpoint: GGUF stores Llama 3's scaling so."""
        frequencies, self.amplitude = rope_frequencies(rope, head_dim, context_length)
        self.frequencies = (frequencies if divisors is None else frequencies / divisors).to(device)

    def __call__(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, fp32 [T, head_dim / 2]."""
        angles = positions_T.float()[:, None] * self.frequencies
        return angles.cos() * self.amplitude, angles.sin() * self.amplitude


def rope_frequencies(rope: Rope, head_dim: int, context_length: int) -> tuple[Tensor, float]:
    """Radians per position, fp32 [head_dim / 2], and the factor of cosines and sines (1 but for YaRN)."""
    match rope.scaling:
        case None:
            return _plain(rope.theta, head_dim), 1.0
        case LinearScaling(factor):
            return _plain(rope.theta, head_dim) / factor, 1.0
        case DynamicScaling() as scaling:
            return _dynamic(rope.theta, head_dim, scaling, context_length), 1.0
        case Llama3Scaling() as scaling:
            return _llama3(_plain(rope.theta, head_dim), scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(rope.theta, head_dim, scaling), _yarn_amplitude(scaling)


def _plain(theta: float, head_dim: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)


def _dynamic(theta: float, head_dim: int, scaling: DynamicScaling, context_length: int) -> Tensor:
    if context_length <= scaling.original_context:
        return _plain(theta, head_dim)
    stretch = scaling.factor * context_length / scaling.original_context - (scaling.factor - 1)
    return _plain(theta * stretch ** (head_dim / (head_dim - 2)), head_dim)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_context * frequencies / (2 * math.pi)  # full turns within the original context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0, 1)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def _yarn(theta: float, head_dim: int, scaling: YarnScaling) -> Tensor:
    """Dimensions that turn often keep their frequency, those that hardly turn are interpolated, between is a ramp."""

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2).float() - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    plain = _plain(theta, head_dim)
    return plain / scaling.factor * interpolated + plain * (1 - interpolated)


def _yarn_amplitude(scaling: YarnScaling) -> float:
    def temperature(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
    return temperature(1.0)
