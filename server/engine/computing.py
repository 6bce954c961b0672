"""What a step computes, whatever fails in it, and how the next one is told to the device before that is known."""

import traceback
from dataclasses import replace
from typing import Protocol

from model.batch import Batch, Chunk, StepResult


class Device(Protocol):
    """What computes: `model.runner.Runner`."""

    def run(self, batch: Batch) -> StepResult:
        """The batch's result."""

    def dispatch(self, batch: Batch) -> None:
        """Begins to compute it, after all that was dispatched before."""

    def collect(self) -> StepResult:
        """The result of what was dispatched first and not collected yet."""

    def abandon(self) -> None:
        """Forgets what was dispatched and not collected."""


class Computing:
    """Steps of a device. One that fails is computed again chunk by chunk, so that only the culprit fails.

    That is exact: a chunk's result does not depend on its neighbours, and computing it twice writes the same keys and
    values to the same places.
    """

    def __init__(self, device: Device, *, is_shared: bool = False) -> None:
        """`is_shared` with ranks that are elsewhere in a step that fails: then nothing is computed again."""
        self.device = device
        self.is_shared = is_shared
        self.failures = 0  # chunks in a row that could not be computed, alone either

    def begin(self, batch: Batch) -> bool:
        """Whether it is under way now: its result is the next that `finish` gives, after those begun before."""
        try:
            self.device.dispatch(batch)
        except Exception:
            traceback.print_exc()
            return False
        return True

    def finish(self) -> StepResult | None:
        """The result of what began first; None where it failed, and all that has begun since with it."""
        try:
            result = self.device.collect()
        except Exception:
            traceback.print_exc()
            self.device.abandon()
            return None
        self.failures = 0
        return result

    def compute(self, batch: Batch) -> StepResult:
        """From beginning to end, while nothing else is under way."""
        try:
            result = self.device.run(batch)
        except Exception:
            if self.is_shared:
                raise
            traceback.print_exc()
            return self.compute_apart(batch)
        self.failures = 0
        return result

    def compute_apart(self, batch: Batch) -> StepResult:
        """Chunk by chunk; what they awaited is known by now."""
        alone = [self._compute_alone(chunk) for chunk in batch.chunks]
        findings = {place: result.findings[0] for place, result in enumerate(alone) if result.findings}
        return StepResult([result.samples[0] for result in alone], findings)

    def _compute_alone(self, chunk: Chunk) -> StepResult:
        """Raises where the chunk before has failed as well: then the device is broken, not one request.

        A new engine on a fresh device goes on with all of them.
        """
        if len(chunk.tokens) < chunk.stop:
            return StepResult([[]])  # the token that it awaited has never come: its sequence has ended
        try:
            result = self.device.run(Batch([replace(chunk, awaits=None)]))
        except Exception:
            self.failures += 1
            if self.failures > 1:
                raise
            return StepResult(["computing it failed"])
        self.failures = 0
        return result
