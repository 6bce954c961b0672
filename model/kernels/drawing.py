"""How one row of logits becomes a token, in plain torch: what truncation leaves, and one draw among it.

Temperature, then top-k, top-p of what is left, min-p; one draw keyed by seed and position.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from model.kernels.philox import uniform

Upload = Callable[[Tensor, torch.device], Tensor]  # from the host

# Shapes: S rows that choose, V vocabulary, K candidates


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row chooses. The defaults cut nothing off."""

    temperature: float  # 0 takes the likeliest
    top_p: float = 1.0  # keep the fewest likeliest tokens that hold this probability
    min_p: float = 0.0  # keep tokens at least this likely relative to the likeliest
    top_k: int = 0  # keep this many of the likeliest tokens; 0 keeps all
    seed: int = 0  # 64 bits with a sign
    position: int = 0  # of the token that is chosen


@dataclass(frozen=True, slots=True)
class Draws:
    """The same of S rows, on the device: the first three fp64 [S], the others int64."""

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    top_k: Tensor
    seed: Tensor
    position: Tensor

    @classmethod
    def of(cls, rows: Sequence[Draw], device: torch.device, upload: Upload = Tensor.to) -> Self:
        reals = [(row.temperature, row.top_p, row.min_p) for row in rows]
        whole = [(row.top_k, row.seed, row.position) for row in rows]
        reals_3S = torch.tensor(reals, dtype=torch.float64, device="cpu").view(-1, 3).T.contiguous()
        whole_3S = torch.tensor(whole, dtype=torch.int64, device="cpu").view(-1, 3).T.contiguous()
        return cls(*upload(reals_3S, device), *upload(whole_3S, device))

    def rows(self) -> Iterator[Draw]:
        columns = (self.temperature, self.top_p, self.min_p, self.top_k, self.seed, self.position)
        return map(Draw, *(column.tolist() for column in columns))


def draw(logits_V: Tensor, how: Draw) -> int:
    """Inverts the cumulative distribution of the candidates, in order of their ids, at one uniform number."""
    is_cut = how.top_k > 0 or how.top_p < 1.0 or how.min_p > 0.0
    ids_K = candidates(logits_V, how) if is_cut else None
    weights_K = weights(logits_V if ids_K is None else logits_V[ids_K], how.temperature)
    cumulative_K = weights_K.cumsum(0)
    total = float(cumulative_K[-1])
    target = min(uniform(how.seed, how.position) * total, math.nextafter(total, 0.0))  # the product may round up
    place = int(torch.searchsorted(cumulative_K, target, right=True))
    return place if ids_K is None else int(ids_K[place])


def weights(logits_K: Tensor, temperature: float) -> Tensor:
    """Unnormalised probabilities in fp64, the likeliest being 1; a tiny temperature leaves the likeliest alone."""
    return logits_K.double().sub_(logits_K.max()).div_(temperature).exp_()


def candidates(logits_V: Tensor, how: Draw) -> Tensor:
    """Ids of the tokens that may be drawn, ascending. Of equally likely tokens the lower id counts as likelier."""
    ids_K = likeliest(logits_V, how.top_k or len(logits_V))
    ids_K = ids_K[logits_V[ids_K] > float("-inf")]
    weights_K = weights(logits_V[ids_K], how.temperature)
    if how.top_p < 1.0:
        kept = _nucleus(weights_K, how.top_p)
        ids_K, weights_K = ids_K[kept], weights_K[kept]
    return ids_K[weights_K >= how.min_p]


def likeliest(values_K: Tensor, count: int) -> Tensor:
    """Places of the `count` largest values, or of all where there are fewer, ascending."""
    if count >= len(values_K):
        return torch.arange(len(values_K), device=values_K.device)
    best = values_K.topk(count)
    threshold = best.values[-1]
    missing = int((best.values == threshold).sum())  # among equals topk takes any, and we take the first
    if missing == int((values_K == threshold).sum()):
        return best.indices.sort().values
    ties = torch.nonzero(values_K == threshold).squeeze(1)[:missing]
    return torch.cat([best.indices[best.values > threshold], ties]).sort().values


def _nucleus(weights_K: Tensor, top_p: float) -> Tensor:
    """Places of the fewest largest weights that reach `top_p` of the sum (Holtzman et al. 2020), ascending.

    Sorting the vocabulary is the costly part, and the nucleus is mostly small: look among few first.
    """
    target = float(weights_K.sum()) * top_p
    count = min(256, len(weights_K))
    while True:
        few = likeliest(weights_K, count)
        order = few[torch.sort(weights_K[few], descending=True, stable=True).indices]
        reached = torch.nonzero(weights_K[order].cumsum(0) >= target).squeeze(1)
        if len(reached) or count == len(weights_K):
            break
        count = min(count * 8, len(weights_K))
    size = int(reached[0]) + 1 if len(reached) else count
    return order[:size].sort().values
