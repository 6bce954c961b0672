"""How far one model's predictions are from another's: perplexity, divergence and agreement over many tokens."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Shapes: T predicted tokens, V vocabulary


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model gives for some tokens. Sums over the vocabulary are in float64: they are compared to many digits."""

    logits_TV: Tensor  # float32
    weights_TV: Tensor  # exp(logits - their maximum)
    total_T: Tensor  # of the weights, float64
    normaliser_T: Tensor  # log of the sum of exp(logits), float64

    @classmethod
    def of(cls, logits_TV: Tensor) -> "Prediction":
        most_T1 = logits_TV.amax(dim=-1, keepdim=True)
        weights_TV = (logits_TV - most_T1).exp_()
        total_T = weights_TV.sum(dim=-1, dtype=torch.float64)
        return cls(logits_TV, weights_TV, total_T, most_T1[:, 0].double() + total_T.log())


@dataclass(slots=True)
class Tally:
    """Sums over the tokens seen so far."""

    tokens: int = 0
    surprise: float = 0.0  # negative log-likelihood of the text, nats
    divergence: float = 0.0  # Kullback-Leibler, from the reference's distribution to this one, nats
    agreed: int = 0  # tokens of which both find the same one likeliest

    @property
    def perplexity(self) -> float:
        return math.exp(self.surprise / self.tokens)

    @property
    def kl(self) -> float:
        return self.divergence / self.tokens

    @property
    def agreement(self) -> float:
        return self.agreed / self.tokens

    def add(self, ours: Prediction, reference: Prediction, targets_T: Tensor) -> None:
        """Judges predictions beside the reference's, of the tokens that came in truth."""
        chosen_T = ours.logits_TV.gather(1, targets_T[:, None])[:, 0]
        apart_TV = (reference.logits_TV - ours.logits_TV).mul_(reference.weights_TV)
        apart_T = apart_TV.sum(dim=-1, dtype=torch.float64) / reference.total_T
        self.tokens += len(targets_T)
        self.surprise += float((ours.normaliser_T - chosen_T).sum())
        self.divergence += float((apart_T - reference.normaliser_T + ours.normaliser_T).sum())
        self.agreed += int((ours.logits_TV.argmax(dim=-1) == reference.logits_TV.argmax(dim=-1)).sum())
