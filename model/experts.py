"""A mixture of experts in place of the MLP: a router sends each token to a few of many MLPs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import Experts, ModelConfig
from model.kernels import Kernels
from model.layers import Mlp
from model.linear import Adapted, Linear
from model.weights import Weights, WeightsError

# Shapes: T rows of the step, E experts of a row, R pairs of the two, D model width


class Projections:
    """One projection of every expert, each of them for rows of its own."""

    def __init__(self, projections: list[Linear], kernels: Kernels) -> None:
        self.kernels = kernels
        self.stacks = [kernels.stack(parts) for parts in zip(*(each.weights for each in projections), strict=True)]
        self.roundings = projections[0].roundings
        if any(each.roundings != self.roundings for each in projections):
            raise WeightsError(f"{projections[0].name}: input_scale differs from expert to expert")
        biases = [each.bias for each in projections if each.bias is not None]
        assert len(biases) in (0, len(projections)), "some experts have biases"
        self.biases = torch.stack(biases) if biases else None

    def __call__(self, x_RD: Tensor, chosen_R: Tensor) -> Tensor:
        products = zip(self.stacks, self.roundings, strict=True)
        parts = [self.kernels.linear_of_each(by(x_RD) if by else x_RD, chosen_R, stack) for stack, by in products]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return y if self.biases is None else y + self.biases[chosen_R]


class MixtureOfExperts:
    """Shazeer et al. 2017, routed as in Mixtral: softmax over all experts, the likeliest few, their weighted sum."""

    def __init__(self, weights: Weights, experts: Experts, config: ModelConfig, kernels: Kernels) -> None:
        self.features = experts
        self.router = Linear(weights, {"router": experts.count}, config.dim, kernels)
        each = [Mlp(weights.below(f"experts.{i}"), experts.hidden_dim, config, kernels) for i in range(experts.count)]
        self.up = Projections([mlp.up for mlp in each], kernels)
        self.activate = each[0].activate
        self.down = Projections([mlp.down for mlp in each], kernels)

    def __call__(self, x_TD: Tensor, _: Sequence[Adapted] = ()) -> Tensor:
        """No adapter has a part in it: see `Transformer.projections`."""
        chosen_TE, share_TE = self._route(x_TD)
        chosen_R, x_RD = chosen_TE.flatten(), x_TD.repeat_interleave(self.features.per_token, dim=0)
        y_RD = self.down(self.activate(self.up(x_RD, chosen_R)), chosen_R)
        y_TED = y_RD.view(*chosen_TE.shape, -1) * share_TE[..., None]
        y_TD = torch.zeros_like(x_TD)
        for place in range(self.features.per_token):
            y_TD += y_TED[:, place]
        return y_TD

    def _route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each row, ascending, so that a row's sum has one order in any batch; and their shares."""
        probabilities = torch.softmax(self.router(x_TD).float(), dim=-1)
        share_TE, chosen_TE = probabilities.topk(self.features.per_token, dim=-1)
        if self.features.normalize:
            share_TE = share_TE / share_TE.sum(-1, keepdim=True)
        chosen_TE, order_TE = chosen_TE.sort(dim=-1)
        return chosen_TE, share_TE.gather(-1, order_TE).to(x_TD.dtype)
