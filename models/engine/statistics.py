"""The engine's counters since its start. They are written by its thread and read under its lock."""

from collections import deque
from collections.abc import Sequence

from models.engine.outbox import Outbox
from models.engine.requests import EngineStats
from models.engine.runner import StepPlan

NUM_RECENT_BATCHES = 128


class Counts:
    """What was computed, and how well the batch was filled."""

    def __init__(self) -> None:
        self._steps = 0
        self._decode_steps = 0
        self._decode_rows = 0
        self._peak_batch = 0
        self._recent: deque[int] = deque(maxlen=NUM_RECENT_BATCHES)
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._completed = 0
        self._failed = 0

    def count_pass(self) -> None:
        """Count a pass that ended, well or not: it is progress."""
        self._steps += 1

    def count_rows(self, plan: StepPlan) -> None:
        """Count what a pass computed, before its tokens are recorded."""
        num_decode = sum(row.is_decode for row in plan.rows)
        self._decode_steps += num_decode > 0
        self._decode_rows += num_decode
        self._peak_batch = max(self._peak_batch, len(plan.rows))
        self._recent.append(len(plan.rows))
        self._prompt_tokens += sum(len(row.request.prompt) for row in plan.rows if row.sample and not row.output)

    def count_output(self, num_tokens: int) -> None:
        """Count the tokens that a request got."""
        self._output_tokens += num_tokens

    def count_outcomes(self, outbox: Outbox) -> None:
        """Count the requests that ended."""
        self._completed += len(outbox.completions)
        self._failed += len(outbox.failures)

    def stats(
        self,
        *,
        running: int,
        waiting: int,
        blocks: Sequence[int],
        max_slots: int,
        preempted: int,
        cached_tokens: int,
        evicted_blocks: int,
        drafts: Sequence[int],
        step_age_s: float,
    ) -> EngineStats:
        """Return a reading, with what the caller knows: ``blocks`` are (free, total), ``drafts`` (made, accepted)."""
        free_blocks, total_blocks = blocks
        drafted_tokens, accepted_tokens = drafts
        return EngineStats(
            steps=self._steps,
            running=running,
            waiting=waiting,
            free_blocks=free_blocks,
            total_blocks=total_blocks,
            max_slots=max_slots,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            completed=self._completed,
            failed=self._failed,
            preempted=preempted,
            cached_tokens=cached_tokens,
            evicted_blocks=evicted_blocks,
            drafted_tokens=drafted_tokens,
            accepted_tokens=accepted_tokens,
            mean_batch=self._decode_rows / self._decode_steps if self._decode_steps else 0.0,
            peak_batch=self._peak_batch,
            last_step_age_s=step_age_s,
            recent_batches=tuple(self._recent),
        )
