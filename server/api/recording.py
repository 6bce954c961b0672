"""An exchange put on record: what was asked as it was understood, what was answered token by token."""

from dataclasses import replace

from server.api.choices import Choice, choices_of, logprob_of
from server.api.exchange import Job, Reply
from server.api.schemas import GenerationBody
from server.exactness.recorder import Exchange, RecordedChoice, Recorder
from server.generator import Piece, Usage
from server.metrics import EndReason


def recorded(job: Job, path: str, body: GenerationBody, recorder: Recorder | None) -> Job:
    """The same job, which hands its exchange to the recorder when it ends, if there is one."""
    if recorder is None:
        return job
    reply = _RecordedReply(job, path, body, recorder)
    return replace(job, reply=reply, on_end=reply.end)


class _RecordedReply:
    """A `Reply` that keeps what it tells."""

    def __init__(self, job: Job, path: str, body: GenerationBody, recorder: Recorder) -> None:
        self._job = job
        self._path = path
        self._request = body.model_dump(mode="json", exclude_unset=True, by_alias=True) | {
            "seed": job.request.sampling.seed
        }
        self._recorder = recorder
        self._reply: Reply = job.reply
        self._pieces: list[Piece] = []
        self.opening = job.reply.opening
        self.closing = job.reply.closing
        self.failure = job.reply.failure

    def event(self, piece: Piece, usage: Usage) -> bytes:
        self._pieces.append(piece)
        return self._reply.event(piece, usage)

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        self._pieces = pieces
        return self._reply.whole(pieces, usage)

    def end(self, request_id: str, reason: EndReason, usage: Usage) -> None:
        job = self._job
        exchange = Exchange(
            id=request_id,
            path=self._path,
            request=self._request,
            receipt=job.provenance.receipt(job.request.sampling.seed),
            fingerprint=job.provenance.fingerprint,
            prompts=job.request.prompts,
            end=reason,
            choices=[_choice(choice) for choice in choices_of(self._pieces)],
            completion_tokens=usage.completion_tokens,
        )
        self._recorder.take(exchange)


def _choice(choice: Choice) -> RecordedChoice:
    has_logprobs = any(token.logprob is not None for token in choice.tokens)
    return RecordedChoice(
        index=choice.index,
        text=choice.text,
        token_ids=[token.id for token in choice.tokens],
        logprobs=[logprob_of(token) for token in choice.tokens] if has_logprobs else None,
        finish_reason=choice.finish_reason,
    )
