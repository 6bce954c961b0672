"""Which token comes next: penalties, what is forbidden, the choice, one row at a time.

A row is judged alone: nothing here reduces over several rows, so a request's tokens cannot depend on its neighbours.
Order: bias and penalties; what is forbidden (`restriction.py`); temperature, truncation and the draw, by the kernels
(`kernels/drawing.py`). Log probabilities are those of the model before any of it: under a grammar too, so that a token
chosen for want of others is seen to have been unlikely.
"""

from collections import Counter

import torch
from torch import Tensor

from model.batch import GREEDY, Chunk, DeadEnd, Logprobs, Sample, Sampling
from model.kernels import Kernels
from model.kernels.drawing import Draw, Draws, likeliest
from model.restriction import allowed

# Shapes: S rows of a chunk that choose, V vocabulary

_NOT_FINITE = "the model computed logits that are not finite"


def propose(logits_SV: Tensor, chunks: list[Chunk], kernels: Kernels) -> Tensor:
    """What each row that chooses in a step would choose by itself, -1 where its logits are not finite: int64 [S].

    For a foreseeable chunk that is the choice, and nobody has waited for it yet. For the others it is the likeliest
    token.
    """
    draws = [
        draw_of(chunk.sampling, chunk.stop) if chunk.is_foreseeable else Draw(GREEDY)
        for chunk in chunks
        if chunk.sampling
        for _ in range(len(chunk.drafts) + 1)
    ]
    if all(how.temperature == GREEDY for how in draws):
        return kernels.argmax(logits_SV)
    if kernels.streams.is_asynchronous:
        return kernels.draw(logits_SV, Draws.of(draws, kernels.device, kernels.streams.upload))
    rows = zip(logits_SV, kernels.argmax(logits_SV).tolist(), draws, strict=True)
    ids = [best if best < 0 or how.temperature == GREEDY else kernels.draw_one(row, how) for row, best, how in rows]
    return torch.tensor(ids, dtype=torch.int64)


def choose_run(logits_SV: Tensor, best_S: list[int], chunk: Chunk, kernels: Kernels) -> list[Sample] | str:
    """The tokens after the chunk, up to the first that is not its draft; the error that kept the first row from any.

    `best_S` is what `propose` says of the rows.

    Each row is judged as if the drafts before it had been tokens all along, which they are if it is reached at all.
    So speculation decides how many tokens a step yields and never which (a draft is accepted by being equal to the
    draw, not with a probability as in Leviathan et al. 2023). A later row's error is left to the step that reaches it
    again without the draft.
    """
    if chunk.is_foreseeable:
        return [Sample(best) for best in best_S] if min(best_S, default=0) >= 0 else _NOT_FINITE
    samples: list[Sample] = []
    masks = chunk.masks() if chunk.masks else [None] * len(best_S)
    if masks is None:
        return samples
    for accepted, (logits_V, best, mask) in enumerate(zip(logits_SV, best_S, masks, strict=True)):
        sample = choose(logits_V, best, chunk.knowing(accepted), mask, kernels)
        if isinstance(sample, str):
            return samples or sample
        samples.append(sample)
        if chunk.drafts[accepted : accepted + 1] != (sample.token,):
            break
    return samples


def choose(logits_V: Tensor, best: int, chunk: Chunk, mask: bytes | None, kernels: Kernels) -> Sample | str:
    """The token after the chunk, from fp32 logits of which `best` is the largest; an error in words where it is -1.

    `mask` is the row's of `chunk.masks`.
    """
    assert chunk.sampling is not None
    sampling = chunk.sampling
    if best < 0:
        return _NOT_FINITE
    adjusted_V = _adjust(logits_V, chunk, sampling)
    allowed_V = allowed(chunk, mask, like=logits_V)
    if allowed_V is not None and not bool(allowed_V.any()):
        return DeadEnd("what the request allows and forbids leaves no token to choose")
    if sampling.temperature == GREEDY and adjusted_V is logits_V and allowed_V is None:
        token = best
    else:
        token = kernels.draw_one(adjusted_V, draw_of(sampling, chunk.stop), allowed_V)
    if token < 0:
        return _NOT_FINITE
    if sampling.top_logprobs is None:
        return Sample(token)
    return Sample(token, logprobs_of(logits_V, token, sampling.top_logprobs))


def draw_of(sampling: Sampling, position: int) -> Draw:
    """How the token at `position` is chosen, once its logits are adjusted."""
    return Draw(sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k, sampling.seed, position)


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


def logprobs_of(logits_V: Tensor, token: int, top: int) -> Logprobs:
    """What is told of a token and the `top` likeliest, given the row before it."""
    logprobs_V = torch.log_softmax(logits_V, dim=-1)
    best: list[int] = []
    if top:
        count = min(top, len(logprobs_V))
        best = likeliest(logprobs_V, count).tolist()
    entries = [(token_id, float(logprobs_V[token_id])) for token_id in best]
    entries.sort(key=lambda entry: (-entry[1], entry[0]))
    return Logprobs(chosen=float(logprobs_V[token]), top=entries)
