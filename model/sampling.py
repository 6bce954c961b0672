"""Which token comes next: penalties, truncation and the draw, one row at a time.

A row is judged alone: nothing here reduces over several rows, so a request's tokens cannot depend on its neighbours.
Order: bias and penalties; what is forbidden (`restriction.py`); temperature; top-k; top-p of what is left; min-p; one
draw keyed by seed and position. Log probabilities are those of the model before any of it: under a grammar too, so
that a token chosen for want of others is seen to have been unlikely.
"""

import math
from collections import Counter

import torch
from torch import Tensor

from model.batch import GREEDY, Chunk, DeadEnd, Logprobs, Sample, Sampling
from model.philox import uniform
from model.restriction import allowed

# Shapes: S rows of a chunk that choose, V vocabulary, K candidates


def choose_run(logits_SV: Tensor, best_S: list[int], chunk: Chunk) -> list[Sample] | str:
    """The tokens after the chunk, up to the first that is not its draft; the error that kept the first row from any.

    `best_S` is what `Kernels.argmax` says of the rows.

    Each row is judged as if the drafts before it had been tokens all along, which they are if it is reached at all.
    So speculation decides how many tokens a step yields and never which (a draft is accepted by being equal to the
    draw, not with a probability as in Leviathan et al. 2023). A later row's error is left to the step that reaches it
    again without the draft.
    """
    samples: list[Sample] = []
    masks = chunk.masks() if chunk.masks else [None] * len(best_S)
    if masks is None:
        return samples
    for accepted, (logits_V, best, mask) in enumerate(zip(logits_SV, best_S, masks, strict=True)):
        sample = choose(logits_V, best, chunk.knowing(accepted), mask)
        if isinstance(sample, str):
            return samples or sample
        samples.append(sample)
        if chunk.drafts[accepted : accepted + 1] != (sample.token,):
            break
    return samples


def choose(logits_V: Tensor, best: int, chunk: Chunk, mask: bytes | None = None) -> Sample | str:
    """The token after the chunk, from fp32 logits of which `best` is the largest; an error in words where it is -1.

    `mask` is the row's of `chunk.masks`.
    """
    assert chunk.sampling is not None
    sampling = chunk.sampling
    if best < 0:
        return "the model computed logits that are not finite"
    adjusted_V = _adjust(logits_V, chunk, sampling)
    allowed_V = allowed(chunk, mask, like=logits_V)
    if allowed_V is not None:
        if not bool(allowed_V.any()):
            return DeadEnd("what the request allows and forbids leaves no token to choose")
        adjusted_V = torch.where(allowed_V, adjusted_V, -torch.inf)
    if sampling.temperature == GREEDY:
        token = best if adjusted_V is logits_V else int(torch.argmax(adjusted_V))
    else:
        token = _draw(adjusted_V, sampling, position=chunk.stop)
    if sampling.top_logprobs is None:
        return Sample(token)
    return Sample(token, logprobs_of(logits_V, token, sampling.top_logprobs))


def _adjust(logits_V: Tensor, chunk: Chunk, sampling: Sampling) -> Tensor:
    """Logits after bias and penalties; the very same tensor where nothing applies."""
    has_output_penalty = sampling.presence_penalty or sampling.frequency_penalty
    has_penalty = sampling.repetition_penalty != 1.0 or has_output_penalty
    if not (sampling.logit_bias or has_penalty):
        return logits_V
    adjusted_V = logits_V.clone()
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=logits_V.device)
        adjusted_V[ids] += torch.tensor(list(sampling.logit_bias.values()), device=logits_V.device)
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(chunk.tokens[: chunk.stop])), device=logits_V.device)
        scores = adjusted_V[seen]
        penalty = sampling.repetition_penalty  # Keskar et al. 2019, made to lower negative logits too
        adjusted_V[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    if has_output_penalty and (counts := Counter(chunk.output)):
        penalties = [sampling.presence_penalty + sampling.frequency_penalty * count for count in counts.values()]
        adjusted_V[list(counts)] -= torch.tensor(penalties, device=logits_V.device)
    return adjusted_V


def _draw(logits_V: Tensor, sampling: Sampling, position: int) -> int:
    """Inverts the cumulative distribution of the candidates, in order of their ids, at one uniform number."""
    is_cut = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
    ids_K = _candidates(logits_V, sampling) if is_cut else None
    weights_K = _weights(logits_V if ids_K is None else logits_V[ids_K], sampling.temperature)
    cumulative_K = weights_K.cumsum(0)
    total = float(cumulative_K[-1])
    target = min(uniform(sampling.seed, position) * total, math.nextafter(total, 0.0))  # the product may round up
    place = int(torch.searchsorted(cumulative_K, target, right=True))
    return place if ids_K is None else int(ids_K[place])


def _weights(logits_K: Tensor, temperature: float) -> Tensor:
    """Unnormalised probabilities in fp64, the likeliest being 1; a tiny temperature leaves the likeliest alone."""
    return logits_K.double().sub_(logits_K.max()).div_(temperature).exp_()


def _candidates(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Ids of the tokens that may be drawn, ascending. Of equally likely tokens the lower id counts as likelier."""
    ids_K = _likeliest(logits_V, sampling.top_k or len(logits_V))
    ids_K = ids_K[logits_V[ids_K] > float("-inf")]
    weights_K = _weights(logits_V[ids_K], sampling.temperature)
    if sampling.top_p < 1.0:
        kept = _nucleus(weights_K, sampling.top_p)
        ids_K, weights_K = ids_K[kept], weights_K[kept]
    return ids_K[weights_K >= sampling.min_p]


def _likeliest(values_K: Tensor, count: int) -> Tensor:
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
        few = _likeliest(weights_K, count)
        order = few[torch.sort(weights_K[few], descending=True, stable=True).indices]
        reached = torch.nonzero(weights_K[order].cumsum(0) >= target).squeeze(1)
        if len(reached) or count == len(weights_K):
            break
        count = min(count * 8, len(weights_K))
    size = int(reached[0]) + 1 if len(reached) else count
    return order[:size].sort().values


def logprobs_of(logits_V: Tensor, token: int, top: int) -> Logprobs:
    """What is told of a token and the `top` likeliest, given the row before it."""
    logprobs_V = torch.log_softmax(logits_V, dim=-1)
    best: list[int] = []
    if top:
        count = min(top, len(logprobs_V))
        best = _likeliest(logprobs_V, count).tolist()
    entries = [(token_id, float(logprobs_V[token_id])) for token_id in best]
    entries.sort(key=lambda entry: (-entry[1], entry[0]))
    return Logprobs(chosen=float(logprobs_V[token]), top=entries)
