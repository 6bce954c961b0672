"""A mixture of experts in place of the MLP: a router sends each token to a few of many MLPs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import Experts, ModelConfig
from model.kernels import Kernels
from model.layers import Mlp
from model.linear import Adapted, Linear
from model.weights import Weights


class MixtureOfExperts:
    """Shazeer et al. 2017, routed as in Mixtral: softmax over all experts, the likeliest few, their weighted sum."""

    def __init__(self, weights: Weights, experts: Experts, config: ModelConfig, kernels: Kernels) -> None:
        self.features = experts
        self.router = Linear(weights, {"router": experts.count}, config.dim, kernels)
        self.experts = [
            Mlp(weights.below(f"experts.{i}"), experts.hidden_dim, config, kernels) for i in range(experts.count)
        ]

    def __call__(self, x_TD: Tensor, _: Sequence[Adapted] = ()) -> Tensor:
        """No adapter has a part in it: see `Transformer.projections`."""
        chosen_TE, share_TE = self._route(x_TD)
        y_TD = torch.zeros_like(x_TD)
        for index in torch.unique(chosen_TE).tolist():  # ascending, so that a row's sum has one order in any batch
            rows, places = torch.where(chosen_TE == index)
            y_TD[rows] += self.experts[index](x_TD[rows]) * share_TE[rows, places, None]
        return y_TD

    def _route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each row and their shares, [T, experts per token]."""
        probabilities = torch.softmax(self.router(x_TD).float(), dim=-1)
        share_TE, chosen_TE = probabilities.topk(self.features.per_token, dim=-1)
        if self.features.normalize:
            share_TE = share_TE / share_TE.sum(-1, keepdim=True)
        return chosen_TE, share_TE.to(x_TD.dtype)
